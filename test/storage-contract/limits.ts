/** What an account may hold, and that the grouping of writes never shows. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { Write, WriteOutcome } from "../../src/storage/storage.ts";
import type { UnderTest } from "../storage-contract.ts";
import {
  allChanges,
  apply,
  applyOne,
  blobOfBytes,
  createAccount,
  deletion,
  liveHistory,
  NOW,
  push,
  results,
  slot,
  uuid,
} from "../storage-fixtures.ts";
import { appliedSeqs, sharedView, someWrite, writeOf } from "./some-writes.ts";

const PROPERTY_DEADLINE_MS = 90_000;

export function limitsContract(storage: UnderTest): void {
  describe("limits", () => {
    test("an account that is full takes nothing that makes it larger", async () => {
      const { userId, author } = await createAccount(storage());
      const limits = { accountBytes: 100 };
      await applyOne(storage(), slot(author, { blob: blobOfBytes(60) }), limits);
      const over = await apply(storage(), [slot(author, { slotNumber: 2, blob: blobOfBytes(41) })], limits);
      expect(over).toEqual({ outcomes: [{ result: "quota_exceeded" }], accounts: [] });
      expect(await applyOne(storage(), push(author, { blob: blobOfBytes(41) }), limits)).toEqual({
        result: "quota_exceeded",
      });
      expect(await applyOne(storage(), push(author, { blob: blobOfBytes(40) }), limits)).toMatchObject({
        result: "applied",
      });
      expect(await storage().summary(userId)).toMatchObject({ storedBytes: 100, historyItems: 1, seq: 2 });
    });

    test("what does not grow always fits, also over the limit", async () => {
      const { userId, author } = await createAccount(storage());
      await applyOne(storage(), slot(author, { blob: blobOfBytes(60) }));
      const limits = { accountBytes: 10 };
      const same = slot(author, { blob: blobOfBytes(60, "y"), timestamp: NOW + 1 });
      expect(await applyOne(storage(), same, limits)).toMatchObject({ result: "applied" });
      const smaller = slot(author, { blob: blobOfBytes(50), timestamp: NOW + 2 });
      expect(await applyOne(storage(), smaller, limits)).toMatchObject({ result: "applied" });
      const larger = slot(author, { blob: blobOfBytes(51), timestamp: NOW + 3 });
      expect(await applyOne(storage(), larger, limits)).toEqual({ result: "quota_exceeded" });
      expect(await applyOne(storage(), slot(author, { blob: null, timestamp: NOW + 4 }), limits)).toMatchObject({
        result: "applied",
      });
      expect(await storage().summary(userId)).toMatchObject({ storedBytes: 0 });
    });

    test("within a batch each write has the room that those before it left", async () => {
      const { userId, author } = await createAccount(storage());
      const held = push(author, { blob: blobOfBytes(30) });
      await applyOne(storage(), held);
      const batch = await apply(
        storage(),
        [
          slot(author, { slotNumber: 1, blob: blobOfBytes(60) }),
          slot(author, { slotNumber: 2, blob: blobOfBytes(50) }), // 30 + 60 + 50
          slot(author, { slotNumber: 3, blob: blobOfBytes(10) }),
          deletion(author, held.id),
          push(author, { blob: blobOfBytes(40) }), // 60 + 10 + 40
          push(author, { blob: blobOfBytes(30) }),
        ],
        { accountBytes: 100 },
      );
      expect(results(batch)).toEqual("applied quota_exceeded applied applied quota_exceeded applied".split(" "));
      expect(await storage().summary(userId)).toMatchObject({ storedBytes: 100, historyItems: 1 });
    });

    test("within a batch, versions of one slot are weighed one after the other", async () => {
      const { userId, author } = await createAccount(storage());
      const version = (bytes: number, later: number) =>
        slot(author, { blob: blobOfBytes(bytes), timestamp: NOW + later });
      const batch = await apply(storage(), [version(60, 1), version(120, 5), version(80, 3), version(90, 2)], {
        accountBytes: 100,
      });
      expect(results(batch)).toEqual(["applied", "quota_exceeded", "applied", "stale"]);
      expect(await storage().slots(userId)).toMatchObject([{ updatedAt: NOW + 3 }]);
      expect(await storage().summary(userId)).toMatchObject({ storedBytes: 80 });
    });

    test("one account that is full does not hold up another", async () => {
      const [full, other] = [await createAccount(storage()), await createAccount(storage())];
      await applyOne(storage(), slot(full.author, { blob: blobOfBytes(100) }));
      const batch = await apply(
        storage(),
        [
          slot(other.author, { blob: blobOfBytes(90) }),
          slot(full.author, { slotNumber: 2 }),
          slot(other.author, { blob: blobOfBytes(95), timestamp: NOW + 1 }),
        ],
        { accountBytes: 100 },
      );
      expect(results(batch)).toEqual(["applied", "quota_exceeded", "applied"]);
      expect(await storage().summary(other.userId)).toMatchObject({ storedBytes: 95 });
    });

    test("the oldest history leaves an account that has too much; its deletions come after the batch's changes", async () => {
      const { userId, author } = await createAccount(storage());
      const items = [1, 2, 3, 4, 5].map((age) => push(author, { createdAt: NOW - age }));
      const limits = { historyItems: 3 };
      const [newest, second, third, fourth, oldest] = items;
      await apply(storage(), items.slice(2), limits);
      const batch = await apply(storage(), [...items.slice(0, 2), slot(author)], limits);
      const [progress] = batch.accounts;
      expect(progress?.changes).toMatchObject([
        { kind: "history", id: newest?.id },
        { kind: "history", id: second?.id },
        { kind: "slot" },
        { kind: "history_deletion", id: oldest?.id },
        { kind: "history_deletion", id: fourth?.id },
      ]);
      const left = await liveHistory(storage(), userId);
      expect(left.map(({ id }) => id)).toEqual([newest, second, third].flatMap((item) => item?.id ?? []));
      expect(await storage().summary(userId)).toMatchObject({
        historyItems: 3,
        seq: progress?.seq,
        storedBytes: 3 * 4 + 7,
      });
      if (oldest === undefined) throw new Error("five items were asked for");
      expect(await applyOne(storage(), oldest, limits)).toMatchObject({ result: "stale", winner: null }); // [W8]
    });

    test("an item older than all of a full history is taken, and leaves at once", async () => {
      const { userId, author } = await createAccount(storage());
      const limits = { historyItems: 1 };
      await applyOne(storage(), push(author), limits);
      const old = push(author, { createdAt: NOW - 1 });
      const batch = await apply(storage(), [old], limits);
      expect(results(batch)).toEqual(["applied"]);
      expect(batch.accounts[0]?.changes.map(({ kind }) => kind)).toEqual(["history", "history_deletion"]);
      expect((await allChanges(storage(), userId)).map(({ kind }) => kind)).toEqual(["history", "history_deletion"]);
    });

    test(
      "[W2] [W7] [W8] how writes are grouped never shows: one batch or many, the same outcomes and the same end",
      async () => {
        const writes = fc.array(someWrite, { minLength: 1, maxLength: 20 });
        await fc.assert(
          fc.asyncProperty(writes, writes, fc.integer({ min: 60, max: 400 }), async (earlier, drawn, accountBytes) => {
            const ids = Array.from({ length: 4 }, uuid);
            const oneByOne = async (given: readonly Write[]) => {
              const outcomes: WriteOutcome[] = [];
              for (const write of given) outcomes.push(await applyOne(storage(), write, { accountBytes }));
              return outcomes;
            };
            const [alone, together] = [await createAccount(storage()), await createAccount(storage())];
            const before = await oneByOne(earlier.map((draw) => writeOf(draw, alone, ids, [])));
            await oneByOne(earlier.map((draw) => writeOf(draw, together, ids, [])));
            const seqs = appliedSeqs(before);

            const separate = await oneByOne(drawn.map((draw) => writeOf(draw, alone, ids, seqs)));
            const grouped = drawn.map((draw) => writeOf(draw, together, ids, seqs));
            const batch = await apply(storage(), grouped, { accountBytes });

            const expected = sharedView(alone, [...seqs, ...appliedSeqs(separate)]);
            const found = sharedView(together, [...seqs, ...appliedSeqs(batch.outcomes)]);
            expect(batch.outcomes.map(found.outcome)).toEqual(separate.map(expected.outcome));
            const told = batch.accounts[0]?.changes ?? [];
            expect(told.map(({ seq }) => seq)).toEqual(appliedSeqs(batch.outcomes));
            expect((await allChanges(storage(), together.userId)).map(found.change)).toEqual(
              (await allChanges(storage(), alone.userId)).map(expected.change),
            );
            const [left, right] = [await storage().summary(alone.userId), await storage().summary(together.userId)];
            expect({ ...right, seq: 0 }).toEqual({ ...left, seq: 0 } as NonNullable<typeof right>);
          }),
          { numRuns: 80 },
        );
      },
      PROPERTY_DEADLINE_MS,
    );
  });
}
