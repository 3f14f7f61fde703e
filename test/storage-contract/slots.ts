/** The writes of slots: who wins, and what everybody hears of it. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { NIL_UUID } from "../../src/protocol.ts";
import type { SlotWrite } from "../../src/storage/storage.ts";
import type { UnderTest } from "../storage-contract.ts";
import {
  allChanges,
  apply,
  applyOne,
  blobOf,
  createAccount,
  LIMITS,
  NOW,
  results,
  seqOf,
  slot,
  uuid,
} from "../storage-fixtures.ts";

const PROPERTY_DEADLINE_MS = 60_000;

export function slotsContract(storage: UnderTest): void {
  describe("slots", () => {
    test("the first write of a slot is applied, and reads back as it came", async () => {
      const { userId, author, devices } = await createAccount(storage());
      const outcome = await applyOne(storage(), slot(author, { slotNumber: 10, blob: blobOf("ENC:one") }));
      const change = {
        kind: "slot",
        seq: 1,
        slotNumber: 10,
        blob: blobOf("ENC:one"),
        updatedBy: devices[0],
        timestamp: NOW,
      };
      expect(outcome).toEqual({ result: "applied", seq: 1, change } as typeof outcome);
      expect(await storage().slots(userId)).toEqual([
        { slotNumber: 10, blob: blobOf("ENC:one"), updatedAt: NOW, updatedBy: devices[0], seq: 1 },
      ]);
      expect(await allChanges(storage(), userId)).toEqual([change] as Awaited<ReturnType<typeof allChanges>>);
    });

    test("[W2] the later timestamp wins, whatever came first", async () => {
      const { userId, author, second } = await createAccount(storage());
      await applyOne(storage(), slot(author, { timestamp: NOW, blob: blobOf("newer") }));
      const late = await applyOne(storage(), slot(second, { timestamp: NOW - 1, blob: blobOf("older") }));
      // Without its blob: who sends a few bytes that lose must not make the server carry a megabyte.
      expect(late).toEqual({
        result: "stale",
        seq: 1,
        winner: { kind: "slot", seq: 1, slotNumber: 1, updatedBy: author.deviceId, timestamp: NOW },
      });
      const next = await applyOne(storage(), slot(second, { timestamp: NOW + 1, blob: blobOf("newest") }));
      expect(next).toMatchObject({ result: "applied" });
      expect(await storage().slots(userId)).toMatchObject([{ blob: blobOf("newest"), updatedAt: NOW + 1 }]);
    });

    test("[W2] at the same time the greater device wins, and any device over none", async () => {
      const { userId, author, second, accountAuthor } = await createAccount(storage());
      const blob = blobOf("of the account token");
      expect(await applyOne(storage(), slot(accountAuthor, { blob }))).toMatchObject({ result: "applied" });
      expect(await applyOne(storage(), slot(second))).toMatchObject({ result: "applied" });
      expect(await applyOne(storage(), slot(author, { blob: blobOf("z") }))).toMatchObject({ result: "stale" });
      expect(await applyOne(storage(), slot(accountAuthor, { blob }))).toMatchObject({ result: "stale" });
      expect(await storage().slots(userId)).toMatchObject([{ updatedBy: second.deviceId }]);
    });

    test("[W2] of one device's two contents of the same time the greater SHA-256 wins", async () => {
      const { userId, author } = await createAccount(storage());
      const [smaller, greater] = ["a", "b"]
        .map(blobOf)
        .toSorted((left, right) => Buffer.compare(sha256(left), sha256(right)));
      if (smaller === undefined || greater === undefined) throw new Error("two blobs were asked for");
      await applyOne(storage(), slot(author, { blob: smaller }));
      expect(await applyOne(storage(), slot(author, { blob: greater }))).toMatchObject({ result: "applied" });
      expect(await applyOne(storage(), slot(author, { blob: smaller }))).toMatchObject({ result: "stale" });
      expect(await storage().slots(userId)).toMatchObject([{ blob: greater }]);
    });

    test("a slot is read as the change it is; one that was never written is null", async () => {
      const { userId, author } = await createAccount(storage());
      const outcome = await applyOne(storage(), slot(author));
      const change = await storage().slot(userId, 1);
      expect(change).toMatchObject({ kind: "slot", seq: 1, slotNumber: 1, blob: blobOf("content"), timestamp: NOW });
      expect(outcome).toMatchObject({ result: "applied", change });
      expect(await storage().slot(userId, 2)).toBeNull();
    });

    test("[W2] the same write again is a duplicate: nothing changes", async () => {
      const { userId, author } = await createAccount(storage());
      await applyOne(storage(), slot(author));
      const again = await apply(storage(), [slot(author), slot(author)]);
      expect(again.outcomes).toMatchObject([
        { result: "duplicate", seq: 1, stored: { kind: "slot", seq: 1, slotNumber: 1, timestamp: NOW } },
        { result: "duplicate", seq: 1 },
      ]);
      expect(again.accounts).toEqual([]);
      expect(await storage().summary(userId)).toMatchObject({ seq: 1 });
    });

    test("[W4] [W5] a write without a timestamp takes now, or one more than what is stored", async () => {
      const { userId, author } = await createAccount(storage());
      const untimed = slot(author, { timestamp: null, blob: blobOf("put") });
      expect(await applyOne(storage(), untimed)).toMatchObject({ result: "applied", change: { timestamp: NOW } });
      await applyOne(storage(), slot(author, { timestamp: NOW + 50_000 }));
      expect(await applyOne(storage(), untimed)).toMatchObject({
        result: "applied",
        change: { timestamp: NOW + 50_001 },
      });
      expect(await storage().slots(userId)).toMatchObject([{ blob: blobOf("put"), updatedAt: NOW + 50_001 }]);
    });

    test("[W5] timestamps are kept to the millisecond, from the first to those of the year 9999", async () => {
      const { userId, author } = await createAccount(storage());
      const last = Date.UTC(9999, 11, 31, 23, 59, 59, 999);
      for (const [index, timestamp] of [1, 999, 1_001, 1_699_999_999_999, last].entries()) {
        await applyOne(storage(), slot(author, { slotNumber: index + 1, timestamp }));
      }
      const stored = await storage().slots(userId);
      expect(stored?.map(({ updatedAt }) => updatedAt)).toEqual([1, 999, 1_001, 1_699_999_999_999, last]);
    });

    test("a write upon the stored version wins whatever the clocks say; upon an older one, [W2] decides", async () => {
      const { author, second } = await createAccount(storage());
      const stored = await applyOne(storage(), slot(author, { timestamp: NOW + 10_000 }));
      const baseSeq = seqOf(stored);
      const behind = slot(second, { timestamp: NOW, baseSeq, blob: blobOf("behind") });
      const won = await applyOne(storage(), behind);
      expect(won).toMatchObject({ result: "applied", change: { timestamp: NOW + 10_001 } });
      expect(await applyOne(storage(), behind)).toMatchObject({ result: "stale", seq: seqOf(won) });
      const ahead = slot(author, { timestamp: NOW + 20_000, baseSeq: seqOf(won), blob: blobOf("ahead") });
      expect(await applyOne(storage(), ahead)).toMatchObject({
        result: "applied",
        change: { timestamp: NOW + 20_000 },
      });
      expect(await applyOne(storage(), ahead)).toMatchObject({ result: "duplicate" });
    });

    test("a cleared slot is gone from the list, and still decides who wins", async () => {
      const { userId, author } = await createAccount(storage());
      await applyOne(storage(), slot(author));
      const cleared = await applyOne(storage(), slot(author, { blob: null, timestamp: NOW + 5 }));
      expect(cleared).toMatchObject({ result: "applied", change: { kind: "slot", blob: null, timestamp: NOW + 5 } });
      expect(await storage().slots(userId)).toEqual([]);
      expect(await allChanges(storage(), userId)).toMatchObject([{ seq: seqOf(cleared), blob: null }]);
      expect(await storage().summary(userId)).toMatchObject({ storedBytes: 0 });

      expect(await storage().slot(userId, 1)).toMatchObject({ seq: seqOf(cleared), blob: null });
      const older = await applyOne(storage(), slot(author, { timestamp: NOW + 4 }));
      expect(older).toMatchObject({ result: "stale", winner: { timestamp: NOW + 5 } });
      const again = await applyOne(storage(), slot(author, { blob: null, timestamp: NOW + 5 }));
      expect(again).toMatchObject({ result: "duplicate", stored: { timestamp: NOW + 5 } });
      expect(await applyOne(storage(), slot(author, { timestamp: NOW + 6 }))).toMatchObject({ result: "applied" });
      expect(await storage().slots(userId)).toMatchObject([{ updatedAt: NOW + 6 }]);
    });

    test("a slot that was never written can be cleared", async () => {
      const { author } = await createAccount(storage());
      expect(await applyOne(storage(), slot(author, { blob: null }))).toMatchObject({
        result: "applied",
        change: { blob: null },
      });
    });

    test("[W9] seqs follow the order of the batch, in each account for itself", async () => {
      const [one, other] = [await createAccount(storage()), await createAccount(storage())];
      const batch = await apply(storage(), [
        slot(one.author, { slotNumber: 2 }),
        slot(other.author, { slotNumber: 3 }),
        slot(one.author, { slotNumber: 1 }),
        slot(one.second, { slotNumber: 2, timestamp: NOW - 1 }),
        slot(one.author, { slotNumber: 3 }),
      ]);
      expect(results(batch)).toEqual(["applied", "applied", "applied", "stale", "applied"]);
      const progress = batch.accounts.find(({ userId }) => userId === one.userId);
      expect(progress?.previousSeq).toBe(0);
      expect(progress?.changes.map((change) => change.kind === "slot" && change.slotNumber)).toEqual([2, 1, 3]);
      const seqs = progress?.changes.map(({ seq }) => seq) ?? [];
      expect(seqs).toEqual(seqs.toSorted((left, right) => left - right));
      expect(progress?.seq).toBe(seqs.at(-1));
      expect(batch.accounts).toHaveLength(2);
      const counters = await storage().accountSeqs([one.userId, other.userId, uuid()]);
      expect(counters).toEqual(new Map(batch.accounts.map(({ userId, seq }) => [userId, seq])));

      const next = await apply(storage(), [slot(one.author, { slotNumber: 4 })]);
      expect(next.accounts).toMatchObject([{ previousSeq: progress?.seq }]);
    });

    test("[W9] a batch that changes nothing of an account leaves its counter alone", async () => {
      const { userId, author } = await createAccount(storage());
      await applyOne(storage(), slot(author));
      const batch = await apply(storage(), [slot(author, { timestamp: 1 }), slot(author, { timestamp: 2 })]);
      expect(results(batch)).toEqual(["stale", "stale"]);
      expect(batch.accounts).toEqual([]);
      expect(await storage().summary(userId)).toMatchObject({ seq: 1 });
    });

    test("an empty batch does nothing", async () => {
      expect(await apply(storage(), [])).toEqual({ outcomes: [], accounts: [] });
    });

    test("[R6] a token that no longer counts writes nothing; others of the batch are not held up", async () => {
      const one = await createAccount(storage());
      const other = await createAccount(storage());
      await storage().revokeDevice(one.userId, one.devices[1], NOW);
      const authors = [
        one.second, // revoked
        { ...one.author, deviceId: uuid() }, // never there
        { ...one.author, deviceId: other.devices[0] }, // another account's
        { ...one.author, userId: uuid() }, // an account never there
        { ...one.author, tokenGeneration: -1 }, // of before a password change
      ];
      const batch = await apply(storage(), [
        ...authors.map((author, index) => slot(author, { slotNumber: index + 1 })),
        slot(one.author, { slotNumber: 9 }),
      ]);
      expect(results(batch)).toEqual([...authors.map(() => "revoked"), "applied"]);
      expect(await storage().slots(one.userId)).toMatchObject([{ slotNumber: 9 }]);
      expect(await storage().slots(other.userId)).toEqual([]);
    });

    test("[R6] within a batch, a write whose token no longer counts stands in nobody's way", async () => {
      const { userId, devices, author, second } = await createAccount(storage());
      await storage().revokeDevice(userId, devices[1], NOW);
      const batch = await apply(storage(), [
        slot(second, { slotNumber: 1, timestamp: NOW + 5 }),
        slot(author, { slotNumber: 1 }),
        slot(author, { slotNumber: 2 }),
        slot(second, { slotNumber: 2, timestamp: NOW + 5 }),
      ]);
      expect(results(batch)).toEqual(["revoked", "applied", "applied", "revoked"]);
      expect(await storage().slots(userId)).toMatchObject([{ updatedAt: NOW }, { updatedAt: NOW }]);
    });

    test("writes of one batch to one slot have the effect that they have one after the other", async () => {
      const { userId, author, second } = await createAccount(storage());
      const batch = await apply(storage(), [
        slot(author, { timestamp: NOW + 2, blob: blobOf("first") }),
        slot(author, { timestamp: NOW + 1, blob: blobOf("late") }),
        slot(author, { timestamp: NOW + 3, blob: blobOf("passing") }),
        slot(author, { timestamp: NOW + 3, blob: blobOf("passing") }),
        slot(second, { timestamp: null, blob: blobOf("put") }),
        slot(second, { timestamp: NOW + 1, blob: null }),
      ]);
      expect(batch.outcomes).toMatchObject([
        { result: "applied", change: { blob: blobOf("first") } },
        { result: "stale", winner: { timestamp: NOW + 2 } },
        { result: "applied", change: { blob: blobOf("passing") } },
        { result: "duplicate", stored: { timestamp: NOW + 3 } },
        { result: "applied", change: { blob: blobOf("put"), timestamp: NOW + 4, updatedBy: second.deviceId } },
        { result: "stale", winner: { timestamp: NOW + 4, updatedBy: second.deviceId } },
      ]);
      expect(batch.accounts[0]?.changes).toMatchObject([
        { blob: blobOf("first") },
        { blob: blobOf("passing") },
        { blob: blobOf("put") },
      ]);
      expect(await storage().slots(userId)).toMatchObject([{ blob: blobOf("put"), updatedAt: NOW + 4 }]);
      expect(await allChanges(storage(), userId)).toMatchObject([{ blob: blobOf("put"), seq: batch.accounts[0]?.seq }]);
    });

    test(
      "[W2] whatever their order, repetition and grouping, slot writes end with the greatest (timestamp, device, SHA-256)",
      async () => {
        const small = fc.record({
          slotNumber: fc.integer({ min: 1, max: 2 }),
          timestamp: fc.integer({ min: 1, max: 4 }),
          device: fc.integer({ min: 0, max: 2 }),
          content: fc.constantFrom(null, "a", "b", "c"),
        });
        await fc.assert(
          fc.asyncProperty(
            fc.array(fc.array(small, { minLength: 1, maxLength: 8 }), { minLength: 1, maxLength: 6 }),
            async (groups) => {
              const { userId, author, second, accountAuthor } = await createAccount(storage());
              const authors = [accountAuthor, author, second];
              const batches = groups.map((group) =>
                group.map(({ slotNumber, timestamp, device, content }) =>
                  slot(authors[device] ?? author, {
                    slotNumber,
                    timestamp,
                    blob: content === null ? null : blobOf(content),
                  }),
                ),
              );
              for (const batch of batches) await storage().applyWrites(batch, LIMITS, NOW);
              const expected = greatestOfEachSlot(batches.flat());
              const found = (await allChanges(storage(), userId)).map((change) =>
                change.kind === "slot"
                  ? line(change.slotNumber, change.timestamp, change.updatedBy, change.blob)
                  : change.kind,
              );
              expect(found.toSorted()).toEqual(expected.toSorted());
            },
          ),
          { numRuns: 60 },
        );
      },
      PROPERTY_DEADLINE_MS,
    );
  });
}

/** The oracle: sorts all writes of a slot by the rule's own words and takes the last. */
function greatestOfEachSlot(writes: readonly SlotWrite[]) {
  const bySlot = Map.groupBy(writes, ({ slotNumber }) => slotNumber);
  return [...bySlot].map(([slotNumber, ofSlot]) => {
    const keyed = ofSlot.map((write) => ({
      write,
      key: [
        String(write.timestamp).padStart(20, "0"),
        write.author.deviceId ?? NIL_UUID,
        sha256(write.blob ?? "").toString("hex"),
      ].join(" "),
    }));
    const last = keyed.toSorted((left, right) => (left.key < right.key ? -1 : 1)).at(-1)?.write;
    return line(slotNumber, last?.timestamp ?? null, last?.author.deviceId ?? null, last?.blob ?? null);
  });
}

const line = (...fields: (string | number | null)[]): string => fields.join(" ");

function sha256(blob: string): Buffer {
  return Buffer.from(new Bun.CryptoHasher("sha256").update(Buffer.from(blob, "base64")).digest());
}
