/** What must hold while others do the same at the same time. */
import { describe, expect, test } from "bun:test";
import type { Change, Write } from "../../src/storage/storage.ts";
import type { UnderTest } from "../storage-contract.ts";
import {
  type Account,
  allChanges,
  apply,
  applyOne,
  blobOf,
  createAccount,
  newDevice,
  newUser,
  NOW,
  push,
  results,
  slot,
  uuid,
} from "../storage-fixtures.ts";

const RACE_DEADLINE_MS = 60_000;
const WRITERS = 6;

export function racesContract(storage: UnderTest): void {
  describe("races", () => {
    test(
      "[W9] many writers of one account: seqs are unique, and a reader that follows misses none and hears them in order",
      async () => {
        const { userId, author, second } = await createAccount(storage());
        let writing = true;
        const heard: Change[] = [];
        const reader = (async () => {
          for (let after = 0, last = false; ;) {
            const page = await storage().changesAfter(userId, after, { limit: 7, maxBytes: 1_000_000 });
            heard.push(...page.changes);
            after = page.throughSeq;
            await nextTurn();
            if (page.hasMore || writing) continue;
            if (last) return;
            last = true;
          }
        })();
        const told = await inParallel(WRITERS, async (writer) => {
          const changes: Change[] = [];
          for (let round = 0; round < 25; round += 1) {
            const writes = Array.from({ length: 1 + (round % 5) }, () => push(writer % 2 === 0 ? author : second));
            const batch = await apply(storage(), writes, { historyItems: 100_000 });
            for (const progress of batch.accounts) changes.push(...progress.changes);
          }
          return changes;
        });
        writing = false;
        await reader;
        const applied = told.flat().toSorted((left, right) => left.seq - right.seq);
        expect(new Set(applied.map(({ seq }) => seq)).size).toBe(applied.length);
        expect(applied).toHaveLength(WRITERS * 75);
        expect(heard).toEqual(applied);
      },
      RACE_DEADLINE_MS,
    );

    test(
      "batches over several accounts in opposite orders don't wait for each other for ever",
      async () => {
        const accounts = await inParallel(6, () => createAccount(storage()));
        await inParallel(WRITERS, async (writer) => {
          for (let round = 0; round < 20; round += 1) {
            const order = writer % 2 === 0 ? accounts : accounts.toReversed();
            const batch = await apply(
              storage(),
              order.flatMap(({ author }): Write[] => [
                push(author),
                slot(author, { timestamp: null, slotNumber: (round % 10) + 1 }),
              ]),
            );
            expect(new Set(results(batch))).toEqual(new Set(["applied"]));
          }
        });
        for (const { userId } of accounts) {
          expect(await storage().summary(userId)).toMatchObject({ seq: WRITERS * 40, historyItems: WRITERS * 20 });
        }
      },
      RACE_DEADLINE_MS,
    );

    test("[W2] of writes that race for a slot the greatest stands, and each other was told so", async () => {
      const { userId, author } = await createAccount(storage());
      const timestamps = Array.from({ length: 40 }, (_, index) => NOW + ((index * 17) % 40));
      const outcomes = await Promise.all(
        timestamps.map((timestamp) =>
          applyOne(storage(), slot(author, { timestamp, blob: blobOf(String(timestamp)) })),
        ),
      );
      expect(await storage().slots(userId)).toMatchObject([{ updatedAt: NOW + 39 }]);
      for (const [index, outcome] of outcomes.entries()) {
        if (outcome.result === "applied") continue;
        expect(outcome).toMatchObject({ result: "stale" });
        if (outcome.result === "stale") expect(outcome.winner?.timestamp).toBeGreaterThan(timestamps[index] ?? 0);
      }
    });

    test("[W7] of pushes that race with one content one is applied", async () => {
      const { userId, author } = await createAccount(storage());
      const outcomes = await inParallel(10, () => applyOne(storage(), push(author, { contentHash: "same" })));
      expect(outcomes.filter(({ result }) => result === "applied")).toHaveLength(1);
      expect(outcomes.filter(({ result }) => result === "duplicate")).toHaveLength(9);
      expect(await storage().summary(userId)).toMatchObject({ historyItems: 1 });
    });

    test(
      "[R6] once a device is revoked, or the password changed, no write of before commits",
      async () => {
        await inParallel(5, async (round) => {
          const account = await createAccount(storage());
          const end = round % 2 === 0 ? revoke : changePassword;
          const seqAtEnd = await seqAfter(account, end);
          const { seq } = (await storage().summary(account.userId)) ?? { seq: -1 };
          expect(seq).toBe(seqAtEnd);
        });
      },
      RACE_DEADLINE_MS,
    );

    /** Writes without pause, ends the token meanwhile, and tells where the counter stood right after that. */
    async function seqAfter(account: Account, end: (account: Account) => Promise<unknown>): Promise<number> {
      let stopped = false;
      const writers = inParallel(WRITERS, async () => {
        while (!stopped) {
          await applyOne(storage(), push(account.author));
          await nextTurn();
        }
      });
      while (((await storage().summary(account.userId))?.seq ?? 0) < 10) await Bun.sleep(1);
      await end(account);
      const { seq } = (await storage().summary(account.userId)) ?? { seq: -2 };
      // Those that had been sent before come to their end.
      for (let writes = 0; writes < 5; writes += 1) {
        expect(await applyOne(storage(), push(account.author))).toEqual({ result: "revoked" });
      }
      stopped = true;
      await writers;
      return seq;
    }

    const revoke = ({ userId, devices }: Account) => storage().revokeDevice(userId, devices[0], NOW);
    const changePassword = ({ userId, devices }: Account) => storage().changePassword(userId, "hash", devices[0], NOW);

    test("a race for one address makes one account", async () => {
      const { email } = newUser();
      const created = await inParallel(10, () => storage().createUser(newUser({ email })));
      expect(created.filter(Boolean)).toHaveLength(1);
    });

    test("a race for one invite, or for one address with several, makes one account", async () => {
      const invites = Array.from({ length: 5 }, () => ({ digest: uuid(), createdAt: NOW, expiresAt: NOW + 1_000 }));
      for (const invite of invites) await storage().createInvite(invite);
      const [one, ...others] = invites;
      const ofOneInvite = await inParallel(8, () => storage().createInvitedUser(newUser(), one?.digest ?? ""));
      expect(ofOneInvite.toSorted()).toEqual([
        "created",
        ...Array.from({ length: 7 }, () => "invite_invalid" as const),
      ]);
      const { email } = newUser();
      const ofOneAddress = await Promise.all(
        others.map(({ digest }) => storage().createInvitedUser(newUser({ email }), digest)),
      );
      expect(ofOneAddress.toSorted()).toEqual(["created", "taken", "taken", "taken"]);
    });

    test("a link code is taken by one of many, and many wrong tries at once are no more than so many", async () => {
      const { userId } = await createAccount(storage());
      const code = { userId, codeDigest: "right", sealedKey: "key", expiresAt: NOW + 1_000 };
      await storage().putLinkCode(code);
      const taken = await inParallel(10, () => storage().takeLinkCode(userId, "right", 5, NOW));
      expect(taken.filter((key) => key !== null)).toEqual(["key"]);

      await storage().putLinkCode(code);
      await inParallel(20, () => storage().takeLinkCode(userId, "wrong", 5, NOW));
      expect(await storage().takeLinkCode(userId, "right", 5, NOW)).toBeNull();
    });

    test("devices that register at once never are more than allowed", async () => {
      const { id } = newUser();
      await storage().createUser(newUser({ id }));
      const registered = await inParallel(12, () => storage().registerDevice(newDevice(id), 4));
      expect(await storage().devices(id, NOW)).toHaveLength(4);
      const revoked = registered.flatMap((each) => each?.revoked ?? []);
      expect(revoked).toHaveLength(8);
      expect(new Set(revoked).size).toBe(8);
    });

    test("presence of the same devices, noted in opposite orders at once, keeps the greatest", async () => {
      const { userId, devices } = await createAccount(storage());
      await inParallel(20, async (round) => {
        const order = round % 2 === 0 ? devices : devices.toReversed();
        await storage().recordPresence(
          order.map((deviceId) => ({
            userId,
            deviceId,
            lastSeen: NOW + round,
            confirmedSeq: 20 - round,
            connectedUntil: 0,
          })),
        );
      });
      for (const device of await storage().devices(userId, NOW)) {
        expect(device).toMatchObject({ lastSeen: NOW + 19, confirmedSeq: 20 });
      }
    });

    test(
      "an account that is deleted while it is written leaves nothing",
      async () => {
        const { userId, author, second } = await createAccount(storage());
        let stopped = false;
        const writers = inParallel(WRITERS, async (writer) => {
          while (!stopped) {
            await apply(storage(), [push(author), slot(second, { timestamp: null, slotNumber: writer + 1 })]);
            await nextTurn();
          }
        });
        while (((await storage().summary(userId))?.seq ?? 0) < 10) await Bun.sleep(1);
        expect(await storage().deleteUser(userId)).toBe(true);
        stopped = true;
        await writers;
        await storage().createUser(newUser({ id: userId }));
        expect(await allChanges(storage(), userId)).toEqual([]);
        expect(await storage().devices(userId, NOW)).toEqual([]);
      },
      RACE_DEADLINE_MS,
    );
  });
}

/** A storage that answers at once never lets anything else have a turn. */
const nextTurn = () => new Promise<void>((resolve) => void setImmediate(resolve));

function inParallel<T>(count: number, work: (index: number) => Promise<T>): Promise<T[]> {
  return Promise.all(Array.from({ length: count }, (_, index) => work(index)));
}
