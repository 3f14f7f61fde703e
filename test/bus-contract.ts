/** What every bus promises, whatever carries it. */
import { describe, expect, test } from "bun:test";
import type { Bus, BusMessage } from "../src/bus/bus.ts";
import { within } from "./harness.ts";

export interface BusMedium extends AsyncDisposable {
  /** Another instance on the same medium. */
  open(): Bus;
}

/** @param create a medium of its own for each test */
export function busContract(name: string, create: () => Promise<BusMedium>): void {
  describe(`bus contract: ${name}`, () => {
    test("a message reaches every other instance, and not its own", async () => {
      await using medium = await create();
      await using teller = await listener(medium.open());
      await using first = await listener(medium.open());
      await using second = await listener(medium.open());
      const message = changes(crypto.randomUUID(), 7);
      teller.bus.tell(message);
      expect(await first.next()).toEqual(message);
      expect(await second.next()).toEqual(message);
      // What the others answer comes after anything the teller could have heard of itself.
      const answer = changes(crypto.randomUUID(), 1);
      first.bus.tell(answer);
      expect(await teller.next()).toEqual(answer);
    });

    test("of several messages about one account the newest is told last", async () => {
      await using medium = await create();
      await using teller = await listener(medium.open());
      await using other = await listener(medium.open());
      const userId = crypto.randomUUID();
      for (let seq = 1; seq <= 100; seq += 1) teller.bus.tell(changes(userId, seq));
      const heard: number[] = [];
      while (heard.at(-1) !== 100) {
        const message = await other.next();
        if (message.kind === "changes") heard.push(message.seq);
      }
      expect(heard).toEqual(heard.toSorted((left, right) => left - right));
    });

    test("[R6] revocations arrive whole: of a device, of an account's older tokens, of all of them", async () => {
      await using medium = await create();
      await using teller = await listener(medium.open());
      await using other = await listener(medium.open());
      const userId = crypto.randomUUID();
      const revocations: BusMessage[] = [
        { kind: "revoked", userId, deviceId: crypto.randomUUID(), tokenGeneration: null },
        { kind: "revoked", userId, deviceId: null, tokenGeneration: 3 },
        { kind: "revoked", userId, deviceId: null, tokenGeneration: null },
      ];
      for (const revocation of revocations) teller.bus.tell(revocation);
      for (const revocation of revocations) expect(await other.next()).toEqual(revocation);
    });

    test("ten thousand accounts at once all arrive", async () => {
      await using medium = await create();
      await using teller = await listener(medium.open());
      await using other = await listener(medium.open());
      const expected = new Set(Array.from({ length: 10_000 }, () => crypto.randomUUID() as string));
      for (const userId of expected) teller.bus.tell(changes(userId, 1));
      while (expected.size > 0) expected.delete((await other.next()).userId);
    });

    test("an instance that has closed hears and tells nothing more", async () => {
      await using medium = await create();
      await using teller = await listener(medium.open());
      await using other = await listener(medium.open());
      const gone = await listener(medium.open());
      await gone[Symbol.asyncDispose]();
      const message = changes(crypto.randomUUID(), 1);
      teller.bus.tell(message);
      expect(await other.next()).toEqual(message);
      expect(gone.heard).toEqual([]);
    });
  });
}

export function changes(userId: string, seq: number): BusMessage {
  return { kind: "changes", userId, seq };
}

/** Listens, and keeps what it hears until it is asked. */
export async function listener(bus: Bus) {
  const heard: BusMessage[] = [];
  let gaps = 0;
  let wake: (() => void) | undefined;
  await bus.listen(
    (message) => {
      heard.push(message);
      wake?.();
    },
    () => {
      gaps += 1;
      wake?.();
    },
  );
  let taken = 0;
  const until = async (reached: () => boolean, what: string) => {
    while (!reached()) await within(new Promise<void>((resolve) => (wake = resolve)), what, 20_000);
  };
  return {
    bus,
    heard,
    async next(): Promise<BusMessage> {
      await until(() => heard.length > taken, "a message on the bus");
      const message = heard[taken];
      taken += 1;
      if (message === undefined) throw new Error("a message was lost in the test");
      return message;
    },
    /** Resolves when the bus has said so often that something may have been missed. */
    gap: (count: number) => until(() => gaps >= count, "a gap of the bus"),
    [Symbol.asyncDispose]: () => bus.close(),
  };
}
