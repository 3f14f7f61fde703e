/** Reading what changed, and what stands. */
import { describe, expect, test } from "bun:test";
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
  slot,
  uuid,
} from "../storage-fixtures.ts";

const PAGE = { limit: 100, maxBytes: 1_000_000 };
const HISTORY_PAGE = { ...PAGE, offset: 0, before: null };

const blobLength = (blob: string): number => Buffer.from(blob, "base64").length;

export function readsContract(storage: UnderTest): void {
  describe("reads", () => {
    test("[W9] changes come in seq order whatever they are, and only those after the seq", async () => {
      const { userId, author } = await createAccount(storage());
      const [kept, dropped] = [push(author), push(author)];
      await apply(storage(), [slot(author), dropped, kept, slot(author, { slotNumber: 2, blob: null })]);
      await apply(storage(), [deletion(author, dropped.id), slot(author, { timestamp: NOW + 1 })]);
      const changes = await allChanges(storage(), userId);
      expect(changes).toMatchObject([
        { kind: "history", id: kept.id },
        { kind: "slot", slotNumber: 2, blob: null },
        { kind: "history_deletion", id: dropped.id },
        { kind: "slot", slotNumber: 1 },
      ]);
      const [, second] = changes;
      expect(await allChanges(storage(), userId, second?.seq)).toEqual(changes.slice(2));
      const counter = (await storage().summary(userId))?.seq ?? 0;
      expect(await storage().changesAfter(userId, counter, PAGE)).toEqual({
        changes: [],
        throughSeq: counter,
        hasMore: false,
      });
    });

    test("a page ends after its limit, and the next goes on where it ended", async () => {
      const { userId, author } = await createAccount(storage());
      const pushes = Array.from({ length: 5 }, () => push(author));
      await apply(storage(), [...pushes, slot(author), slot(author, { slotNumber: 2 })]);
      const sizes: number[] = [];
      const ids: string[] = [];
      for (let after = 0, more = true; more;) {
        const page = await storage().changesAfter(userId, after, { ...PAGE, limit: 3 });
        sizes.push(page.changes.length);
        ids.push(...page.changes.map((change) => (change.kind === "slot" ? `slot ${change.slotNumber}` : change.id)));
        if (page.hasMore) expect(page.throughSeq).toBe(page.changes.at(-1)?.seq ?? -1);
        after = page.throughSeq;
        more = page.hasMore;
      }
      expect(sizes).toEqual([3, 3, 1]);
      expect(ids).toEqual([...pushes.map(({ id }) => id), "slot 1", "slot 2"]);
    });

    test("a page ends before it would grow over its bytes, but holds one change at least", async () => {
      const { userId, author } = await createAccount(storage());
      const gone = push(author);
      await apply(storage(), [gone, deletion(author, gone.id)]);
      for (const bytes of [100_000, 40, 60, 1]) await applyOne(storage(), push(author, { blob: blobOfBytes(bytes) }));
      const pages: (number | null)[][] = [];
      for (let after = 0, more = true; more;) {
        const page = await storage().changesAfter(userId, after, { limit: 100, maxBytes: 100 });
        pages.push(page.changes.map((change) => (change.kind === "history" ? blobLength(change.blob) : null)));
        after = page.throughSeq;
        more = page.hasMore;
      }
      expect(pages).toEqual([[null], [100_000], [40, 60], [1]]);
    });

    test("[W9] throughSeq is the counter when nothing is left, also past numbers that stayed unused", async () => {
      const { userId, author } = await createAccount(storage());
      await applyOne(storage(), slot(author));
      await applyOne(storage(), slot(author, { timestamp: NOW + 1 }));
      const seq = (await storage().summary(userId))?.seq ?? -1;
      const page = await storage().changesAfter(userId, 0, { ...PAGE, limit: 1 });
      expect(page).toMatchObject({ changes: [{ timestamp: NOW + 1 }], throughSeq: seq, hasMore: false });
    });

    test("an account that is not there has no changes and no content", async () => {
      const nobody = uuid();
      expect(await storage().changesAfter(nobody, 7, PAGE)).toEqual({ changes: [], throughSeq: 7, hasMore: false });
      expect(await storage().slots(nobody)).toEqual([]);
      expect(await liveHistory(storage(), nobody)).toEqual([]);
      expect(await storage().summary(nobody)).toBeNull();
      expect(await storage().accountSeqs([nobody])).toEqual(new Map());
      expect(await storage().accountSeqs([])).toEqual(new Map());
    });

    test("an account reads its own alone", async () => {
      const [one, other] = [await createAccount(storage()), await createAccount(storage())];
      await apply(storage(), [slot(one.author), push(one.author), slot(other.author, { slotNumber: 2 })]);
      expect(await allChanges(storage(), other.userId)).toMatchObject([{ slotNumber: 2 }]);
      expect(await liveHistory(storage(), other.userId)).toEqual([]);
    });

    test("slots come by number", async () => {
      const { userId, author } = await createAccount(storage());
      for (const slotNumber of [10, 2, 7, 1]) await applyOne(storage(), slot(author, { slotNumber }));
      expect((await storage().slots(userId))?.map(({ slotNumber }) => slotNumber)).toEqual([1, 2, 7, 10]);
    });

    test("slots of more bytes than asked for don't come together", async () => {
      const { userId, author } = await createAccount(storage());
      await applyOne(storage(), slot(author, { slotNumber: 1, blob: blobOfBytes(60) }));
      await applyOne(storage(), slot(author, { slotNumber: 2, blob: blobOfBytes(40) }));
      await applyOne(storage(), slot(author, { slotNumber: 3, blob: blobOfBytes(40) }));
      await applyOne(storage(), slot(author, { slotNumber: 3, blob: null, timestamp: NOW + 1 }));
      expect(await storage().slots(userId, 99)).toBeNull();
      expect(await storage().slots(userId, 100)).toMatchObject([{ blob: blobOfBytes(60) }, { blob: blobOfBytes(40) }]);
    });

    test("history comes newest first, page by page, also where many share a moment", async () => {
      const { userId, author } = await createAccount(storage());
      const pushes = Array.from({ length: 12 }, (_, index) => push(author, { createdAt: NOW + Math.floor(index / 4) }));
      await apply(storage(), pushes);
      const order = pushes
        .toSorted((left, right) => right.createdAt - left.createdAt || (left.id < right.id ? 1 : -1))
        .map(({ id }) => id);
      const idsOf = (items: readonly { id: string }[]) => items.map(({ id }) => id);
      expect(idsOf(await liveHistory(storage(), userId))).toEqual(order);
      expect(idsOf((await storage().history(userId, { ...HISTORY_PAGE, limit: 5, offset: 3 })).items)).toEqual(
        order.slice(3, 8),
      );

      const paged: string[] = [];
      for (let before: { createdAt: number; id: string } | null = null; ;) {
        const { items, hasMore } = await storage().history(userId, { ...HISTORY_PAGE, limit: 4, before });
        paged.push(...idsOf(items));
        expect(hasMore).toBe(paged.length < 12);
        const last = items.at(-1);
        if (last === undefined) break;
        before = { createdAt: last.createdAt, id: last.id };
      }
      expect(paged).toEqual(order);
      const third = pushes.find(({ id }) => id === order[2]);
      const before = { createdAt: third?.createdAt ?? 0, id: third?.id ?? "" };
      expect(idsOf((await storage().history(userId, { ...HISTORY_PAGE, limit: 2, offset: 1, before })).items)).toEqual(
        order.slice(4, 6),
      );
    });

    test("a page of history ends before it would grow over its bytes, but holds one item at least", async () => {
      const { userId, author } = await createAccount(storage());
      const sizes = [100_000, 40, 60, 1, 100_000, 7];
      await apply(
        storage(),
        sizes.map((bytes, age) => push(author, { blob: blobOfBytes(bytes), createdAt: NOW - age })),
      );
      const sizesOf = (items: readonly { blob: string }[]) => items.map(({ blob }) => blobLength(blob));
      const small = { ...HISTORY_PAGE, maxBytes: 100 };
      const pages: number[][] = [];
      for (let before: { createdAt: number; id: string } | null = null, more = true; more;) {
        const { items, hasMore } = await storage().history(userId, { ...small, before });
        pages.push(sizesOf(items));
        before = items.at(-1) ?? null;
        more = hasMore;
      }
      expect(pages).toEqual([[100_000], [40, 60], [1], [100_000], [7]]);

      const shifted = await storage().history(userId, { ...small, limit: 1, offset: 1 });
      expect([sizesOf(shifted.items), shifted.hasMore]).toEqual([[40], true]);
      const beyond = await storage().history(userId, { ...small, offset: sizes.length });
      expect(beyond).toEqual({ items: [], hasMore: false });
    });

    test("an item's place in the history is found without its content", async () => {
      const { userId, author } = await createAccount(storage());
      const other = await createAccount(storage());
      const pushes = Array.from({ length: 6 }, (_, index) => push(author, { createdAt: NOW + Math.floor(index / 3) }));
      await apply(storage(), [...pushes, push(other.author, { createdAt: NOW - 1 })]);
      const [newest, ...older] = (await liveHistory(storage(), userId)).map(({ createdAt, id }) => ({ createdAt, id }));
      if (newest === undefined) throw new Error("the history is empty");
      for (const [offset, position] of older.entries()) {
        expect(await storage().historyPosition(userId, { before: newest, offset })).toEqual(position);
      }
      expect(await storage().historyPosition(userId, { before: newest, offset: older.length })).toBeNull();
    });

    test("the summary counts what stands", async () => {
      const { userId, author } = await createAccount(storage());
      expect(await storage().summary(userId)).toEqual({ seq: 0, oldestCursorSeq: 0, storedBytes: 0, historyItems: 0 });
      await apply(storage(), [
        slot(author, { blob: blobOfBytes(10) }),
        slot(author, { slotNumber: 2, blob: blobOfBytes(5) }),
        push(author, { blob: blobOfBytes(7) }),
        slot(author, { blob: blobOfBytes(3), timestamp: NOW + 1 }),
      ]);
      expect(await storage().summary(userId)).toMatchObject({ storedBytes: 15, historyItems: 1 });
    });

    test("it answers, and names the epoch of its database", async () => {
      await storage().ping();
      expect(storage().epoch).toMatch(/^[0-9a-f]{16}$/);
      expect(await storage().foreignChanges()).toEqual(expect.any(Number));
    });
  });
}
