/** The parts of the reference client, each alone. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { join } from "node:path";
import {
  createBackoff,
  createMemoryStore,
  createSyncClient,
  type ChangeMessage,
  type ServerMessage,
  type SyncClientOptions,
} from "../src/client/index.ts";
import type { SocketLike } from "../src/client/connection.ts";
import { createOutbox } from "../src/client/outbox.ts";
import { createReplica } from "../src/client/replica.ts";
import { within } from "./harness.ts";

describe("the parts of the reference client", () => {
  test("it needs nothing but the platform: no module, no global of Bun or Node", async () => {
    const built = await Bun.build({
      entrypoints: [join(import.meta.dir, "../src/client/index.ts")],
      target: "browser",
    });
    expect(built.success).toBe(true);
    const code = await built.outputs[0]?.text();
    expect(code).not.toMatch(/\bBun\b|\bBuffer\b|\bprocess\b|\brequire\(|\bimport\s|node:/);
  });

  test("[P5] the replica ends the same wherever it was cut off and however often it is told again", () => {
    const act = fc.record({ item: fc.boolean(), which: fc.integer({ min: 1, max: 4 }), ends: fc.boolean() });
    fc.assert(
      fc.property(fc.array(act, { maxLength: 30 }), fc.array(fc.nat({ max: 30 })), (acts, cuts) => {
        const messages = toMessages(acts);
        const steady = createReplica();
        for (const message of messages) steady.apply(message);
        const cutOff = createReplica();
        for (const message of messages.slice(0, cuts[0] ?? 0)) cutOff.apply(message);
        for (const cursor of cuts) for (const message of messagesAfter(messages, cursor)) cutOff.apply(message);
        for (const message of messagesAfter(messages, 0)) cutOff.apply(message);
        expect(sorted(cutOff)).toEqual(sorted(steady));
        for (const message of messagesAfter(messages, 0)) expect(cutOff.apply(message)).toBe(false);
        // The answer to an own write may come later than what replaced it.
        for (const message of messages) if ("slot_number" in message) expect(cutOff.apply(message)).toBe(false);
        expect(sorted(cutOff)).toEqual(sorted(steady));
      }),
    );
  });

  test("the outbox is bounded, keeps order within a slot or item, and retries what was only busy", async () => {
    const outbox = createOutbox({ maxEntries: 3, maxInFlight: 2 });
    const write = (slot: number) => ({ type: "slot_clear", slot_number: slot, timestamp: 1 }) as const;
    const first = outbox.add(write(1));
    const [sent] = outbox.take();
    void outbox.add(write(1)); // waits for the first
    expect(outbox.take()).toEqual([]);
    void outbox.add(write(2));
    expect(outbox.take()).toHaveLength(1);
    expect(await outbox.add(write(3))).toMatchObject({ result: "refused", code: "outbox_full" });

    const ref = sent?.ref ?? "";
    expect(outbox.fail({ type: "error", code: "busy", message: "", ref, retry_after_ms: 7 })).toBe(7);
    expect(outbox.take().map((entry) => entry.ref)).toEqual([ref]);
    outbox.requeue();
    expect(outbox.take().map((entry) => entry.write.type === "slot_clear" && entry.write.slot_number)).toEqual([1, 2]);
    outbox.acknowledge({ type: "ack", ref, result: "applied", seq: 5 });
    expect(await first).toEqual({ result: "applied", seq: 5 });
    expect(outbox.take()).toHaveLength(1);
  });

  test("the outbox refuses what is above the server's limit, to the byte, and nothing gives way to it", async () => {
    const outbox = createOutbox({ maxEntries: 9, maxInFlight: 9 });
    const write = (bytes: number) =>
      ({
        type: "slot_update",
        slot_number: bytes,
        encrypted_blob: Buffer.alloc(bytes).toString("base64"),
        timestamp: 1,
      }) as const;
    const refused = { result: "refused", code: "payload_too_large" };
    const queued = [96, 97, 98, 99, 100, 101, 102].map((bytes) => outbox.add(write(bytes)));
    expect(outbox.limitBlobs(99)).toBe(true);
    expect(outbox.list().map(({ write: kept }) => "slot_number" in kept && kept.slot_number)).toEqual([96, 97, 98, 99]);
    for (const result of queued.slice(4)) expect(await result).toMatchObject(refused);
    expect(outbox.limitBlobs(99)).toBe(false);
    expect(await outbox.add({ ...write(100), slot_number: 99 })).toMatchObject(refused);
    expect(outbox.size).toBe(4);
  });

  test("of messages that were too large the largest in flight goes, as long as there is one", async () => {
    const outbox = createOutbox({ maxEntries: 9, maxInFlight: 2 });
    const push = (hash: string) =>
      outbox.add({ type: "history_push", id: hash, encrypted_blob: "AAAA", content_hash: hash, created_at: "" });
    const small = push("a");
    const large = push("b".repeat(200));
    const larger = push("c".repeat(300));
    expect(outbox.refuseLargest()).toBe(false);
    outbox.take();
    expect(outbox.refuseLargest()).toBe(true);
    expect(await large).toMatchObject({ result: "refused", code: "payload_too_large" });
    outbox.requeue();
    const refs = outbox.take().map(({ ref }) => ref);
    for (const ref of refs) outbox.acknowledge({ type: "ack", ref, result: "applied", seq: 1 });
    expect([await small, await larger]).toMatchObject([{ result: "applied" }, { result: "applied" }]);
    expect(outbox.refuseLargest()).toBe(false);
  });

  test.each(["bad_request", "payload_too_large", "quota_exceeded", "not_found"])("%s is for good", async (code) => {
    const outbox = createOutbox({ maxEntries: 9, maxInFlight: 9 });
    const result = outbox.add({ type: "history_delete", id: "a" });
    const ref = outbox.take()[0]?.ref ?? "";
    expect(outbox.fail({ type: "error", code, message: "why", ref })).toBeUndefined();
    expect(await result).toEqual({ result: "refused", code, message: "why" });
    expect(outbox.take()).toEqual([]);
  });

  test.each(["busy", "unavailable", "rate_limited"])("%s: a write waits as long as the server says", async (code) => {
    const outbox = createOutbox({ maxEntries: 9, maxInFlight: 9 });
    void outbox.add({ type: "history_delete", id: "a" });
    const ref = outbox.take()[0]?.ref ?? "";
    expect(outbox.fail({ type: "error", code, message: "", ref, retry_after_ms: 1_234 })).toBe(1_234);
    expect(outbox.take().map((entry) => entry.ref)).toEqual([ref]);
  });

  test("[E4] once the server found it too fast, the outbox sends one at a time until nothing waits", () => {
    const outbox = createOutbox({ maxEntries: 9, maxInFlight: 2 });
    const answer = { type: "ack", result: "applied", seq: 1 } as const;
    for (const id of ["a", "b", "c"]) void outbox.add({ type: "history_delete", id });
    const [first, second] = outbox.take();
    const refusal = { type: "error", code: "rate_limited", message: "", ref: first?.ref ?? "" } as const;
    expect(outbox.fail({ ...refusal, retry_after_ms: 1 })).toBe(1_000);
    expect(outbox.take()).toEqual([]);
    outbox.acknowledge({ ...answer, ref: second?.ref ?? "" });
    for (let count = 0; count < 2; count += 1) {
      const taken = outbox.take();
      expect(taken).toHaveLength(1);
      outbox.acknowledge({ ...answer, ref: taken[0]?.ref ?? "" });
    }
    for (const id of ["d", "e", "f"]) void outbox.add({ type: "history_delete", id });
    expect(outbox.take()).toHaveLength(2);
  });

  test("[E3] the longest pause that the server asked for counts, also on another connection", async () => {
    const world = await startWithFakes();
    const [first] = world.sockets;
    void world.client.setSlot(1, "AAAA");
    void world.client.setSlot(2, "AAAA");
    const refs = first?.sent.map(({ ref }) => ref) ?? [];
    expect(refs).toHaveLength(2);
    const refusedAt = performance.now();
    first?.tell({ type: "error", code: "busy", message: "", ref: refs[0] ?? "", retry_after_ms: 300 });
    first?.tell({ type: "error", code: "unavailable", message: "", ref: refs[1] ?? "", retry_after_ms: 1 });
    first?.end(1012);
    await world.until(() => (world.sockets[1]?.sent.length ?? 0) === 2);
    expect(performance.now() - refusedAt).toBeGreaterThan(295);
    expect(first?.sent).toHaveLength(2);
    await world.client.stop();
  });

  test("connections that break as soon as they are live come ever more slowly", async () => {
    const world = await startWithFakes({ reconnect: { firstMs: 20, random: () => 1 } });
    for (let count = 1; count <= 5; count += 1) {
      world.sockets.at(-1)?.end(1011);
      await world.until(() => world.sockets.length > count && world.client.status === "live");
    }
    const pauses = world.sockets.slice(1).map(({ openedAt }, index) => openedAt - (world.sockets[index]?.endedAt ?? 0));
    for (const [index, pause] of pauses.entries()) expect(pause).toBeGreaterThan(20 * 2 ** index - 5);
    await world.client.stop();
  });

  test.each([
    [1012, 20],
    [1008, 40],
    [1013, 40],
  ])("after a connection that held, %d means a pause of %d ms", async (code, pauseMs) => {
    const world = await startWithFakes({ reconnect: { firstMs: 20, steadyMs: 1e-6, random: () => 1 } });
    for (let count = 1; count <= 2; count += 1) {
      world.sockets.at(-1)?.end(code);
      await world.until(() => world.sockets.length > count && world.client.status === "live");
    }
    // Whatever got live has held for longer than that; so only who was asked to slow down has got slower.
    const [, second, third] = world.sockets;
    const pause = (third?.openedAt ?? 0) - (second?.endedAt ?? 0);
    expect(pause).toBeGreaterThan(pauseMs - 5);
    await world.client.stop();
  });

  test("[P8] 4410 alone says that the cursor is of no use; said again, it is no reason to hurry", async () => {
    const store = createMemoryStore();
    await store.save({ cursor: "old", slots: [], history: [], outbox: [], clockOffsetMs: 0 });
    const world = await startWithFakes({ store, reconnect: { firstMs: 100, random: () => 1 } });
    world.sockets.at(-1)?.end(4410);
    await world.until(() => world.sockets.length === 2 && world.client.status === "live");
    world.sockets.at(-1)?.end(4410);
    await world.until(() => world.sockets.length === 3);
    expect(world.sockets.map(({ cursor }) => cursor)).toEqual(["old", null, null]);
    const [, second, third] = world.sockets;
    expect((third?.openedAt ?? 0) - (second?.endedAt ?? 0)).toBeGreaterThan(95);
    await world.client.stop();
  });

  test("a client that is stopped when it hears of a close stays stopped", async () => {
    const world = await startWithFakes({ reconnect: { firstMs: 0 } });
    world.onStatus = (status) => {
      if (status === "waiting") void world.client.stop();
    };
    world.sockets[0]?.end(4410);
    // Whatever would connect again was asked to before this.
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(world.client.status).toBe("stopped");
    expect(world.sockets).toHaveLength(1);
  });

  test("the backoff doubles up to its bound, at random, and starts again after a try that held", () => {
    const backoff = createBackoff({ firstMs: 100, maxMs: 1_000, random: () => 1 });
    expect(Array.from({ length: 6 }, () => backoff.next())).toEqual([100, 200, 400, 800, 1_000, 1_000]);
    expect(backoff.next(4_999)).toBe(1_000);
    expect([backoff.next(5_000), backoff.next()]).toEqual([100, 200]);
    const jittered = createBackoff({ firstMs: 100, random: () => 0.25 });
    expect([jittered.next(), jittered.next()]).toEqual([25, 50]);
  });

  test("a client that is stopped before its store has loaded does not connect, and saves over nothing", async () => {
    const kept = createMemoryStore();
    const { client: earlier } = await startWithFakes({ store: kept });
    void earlier.setSlot(1, "AAAA");
    await earlier.stop();
    const loading = Promise.withResolvers<void>();
    const store = { ...kept, load: () => loading.promise.then(() => kept.load()) };
    let opened = 0;
    const openSocket = (address: string) => {
      opened += 1;
      return new FakeSocket(address, () => {});
    };
    const client = createSyncClient({ url: "http://nowhere.example", token: "token", store, openSocket });
    const [started, stopped] = [client.start(), client.stop()];
    loading.resolve();
    await Promise.all([started, stopped]);
    expect([opened, client.status]).toEqual([0, "stopped"]);
    expect((await kept.load())?.outbox).toMatchObject([{ write: { slot_number: 1, encrypted_blob: "AAAA" } }]);
  });
});

/** A client of a server that is not there: its sockets say what the test wants. */
async function startWithFakes(options: Partial<SyncClientOptions> = {}) {
  const sockets: FakeSocket[] = [];
  let wake = () => {};
  const world = {
    sockets,
    onStatus: (_status: string) => {},
    client: createSyncClient({
      url: "http://nowhere.example",
      token: "token",
      reconnect: { firstMs: 1 },
      openSocket(address) {
        const socket = new FakeSocket(address, () => wake());
        sockets.push(socket);
        return socket;
      },
      onStatus(status) {
        world.onStatus(status);
        wake();
      },
      ...options,
    }),
    async until(condition: () => boolean) {
      while (!condition()) await within(new Promise<void>((resolve) => (wake = resolve)), "the client");
    },
  };
  await world.client.start();
  await world.until(() => world.client.status === "live");
  return world;
}

/** Lets the client in, with nothing to tell. */
class FakeSocket implements SocketLike {
  readonly sent: { ref: string }[] = [];
  readonly openedAt = performance.now();
  endedAt = 0;
  readonly cursor: string | null;
  readonly #onSend: () => void;
  onopen: SocketLike["onopen"] = null;
  onmessage: SocketLike["onmessage"] = null;
  onclose: SocketLike["onclose"] = null;

  constructor(address: string, onSend: () => void) {
    this.cursor = new URL(address).searchParams.get("cursor");
    this.#onSend = onSend;
    queueMicrotask(() => {
      this.onopen?.call(this as unknown as WebSocket, new Event("open"));
      const limits = {
        slots: 10,
        blob_bytes: 1_000,
        body_bytes: 1_000,
        history_items: 1,
        history_batch_items: 1,
        account_bytes: 1,
        devices: 1,
      };
      const server_time = new Date().toISOString();
      this.tell({ type: "welcome", protocol: 2, cursor: "", server_time, device_id: "", limits });
      this.tell({ type: "sync_complete", cursor: "here" });
    });
  }

  tell(message: ServerMessage): void {
    const event = new MessageEvent("message", { data: JSON.stringify(message) });
    this.onmessage?.call(this as unknown as WebSocket, event);
  }

  end(code: number): void {
    this.endedAt = performance.now();
    this.onclose?.call(this as unknown as WebSocket, new CloseEvent("close", { code }));
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
    this.#onSend();
  }

  close(): void {}
}

/** What live sockets hear: slots that are set or cleared, items that come and (at their next mention) go for good. */
function toMessages(acts: { item: boolean; which: number; ends: boolean }[]): ChangeMessage[] {
  const living = new Map<number, string>();
  return acts.map(({ item, which, ends }, index): ChangeMessage => {
    const seq = index + 1;
    if (!item) {
      const place = { slot_number: which, timestamp: seq, seq };
      if (ends) return { type: "slot_cleared", cleared_by: "", ...place };
      return { type: "slot_updated", encrypted_blob: String(seq), updated_by: "", ...place };
    }
    const id = living.get(which);
    if (id !== undefined) {
      living.delete(which);
      return { type: "history_deleted", id, seq };
    }
    living.set(which, `${which} ${seq}`);
    const content = { encrypted_blob: "", content_hash: "", device_id: "", created_at: "" };
    return { type: "history_new", id: `${which} ${seq}`, ...content, seq };
  });
}

/** What a catch-up tells of them: of each slot and item the last, when it is newer than the cursor. */
function messagesAfter(messages: ChangeMessage[], cursor: number): ChangeMessage[] {
  const last = new Map(messages.map((message) => ["id" in message ? message.id : message.slot_number, message]));
  return messages.filter((message) => message.seq > cursor && [...last.values()].includes(message));
}

function sorted(replica: ReturnType<typeof createReplica>) {
  return {
    slots: [...replica.slots.values()].toSorted((left, right) => left.slotNumber - right.slotNumber),
    history: [...replica.history.values()].toSorted((left, right) => left.seq - right.seq),
  };
}
