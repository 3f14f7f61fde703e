/** The writes of the history: pushes, deletes, and what comes back. */
import { describe, expect, test } from "bun:test";
import type { UnderTest } from "../storage-contract.ts";
import {
  allChanges,
  apply,
  applyOne,
  blobOf,
  createAccount,
  deletion,
  liveHistory,
  NOW,
  push,
  results,
  seqOf,
  slot,
  uuid,
} from "../storage-fixtures.ts";

export function historyContract(storage: UnderTest): void {
  describe("history", () => {
    test("a push is applied, and reads back as it came", async () => {
      const { userId, author, devices } = await createAccount(storage());
      const write = push(author, { createdAt: NOW - 77, expiresAt: NOW + 999 });
      const outcome = await applyOne(storage(), write);
      const { id, blob, contentHash, createdAt, expiresAt } = write;
      const item = { id, blob, contentHash, deviceId: devices[0], createdAt, expiresAt, seq: 1 };
      expect(outcome).toMatchObject({ result: "applied", seq: 1, change: { kind: "history", ...item } });
      expect(await liveHistory(storage(), userId)).toEqual([item]);
      expect(await allChanges(storage(), userId)).toEqual([{ kind: "history", ...item }]);
      expect(await storage().summary(userId)).toMatchObject({ historyItems: 1, storedBytes: 4 });
    });

    test("[W7] the same content under another id is a duplicate, and the first stays", async () => {
      const { userId, author, second } = await createAccount(storage());
      const first = push(author, { contentHash: "same" });
      await applyOne(storage(), first);
      const other = await applyOne(storage(), push(second, { contentHash: "same", blob: blobOf("encrypted anew") }));
      // Without its blob: who sends a few bytes again must not make the server carry a megabyte.
      expect(other).toEqual({
        result: "duplicate",
        seq: 1,
        stored: { kind: "history", seq: 1, id: first.id, createdAt: first.createdAt },
      });
      expect(await liveHistory(storage(), userId)).toMatchObject([{ id: first.id }]);
    });

    test("[W7] the same id again is a duplicate, whatever its content", async () => {
      const { author } = await createAccount(storage());
      const first = push(author);
      await applyOne(storage(), first);
      const again = push(author, { id: first.id, contentHash: "other", blob: blobOf("other") });
      expect(await applyOne(storage(), again)).toMatchObject({ result: "duplicate", stored: { id: first.id, seq: 1 } });
    });

    test("[W7] accounts don't meet: the same id and hash in each", async () => {
      const [one, other] = [await createAccount(storage()), await createAccount(storage())];
      const id = uuid();
      const batch = await apply(storage(), [push(one.author, { id }), push(other.author, { id })]);
      expect(results(batch)).toEqual(["applied", "applied"]);
      expect(await applyOne(storage(), deletion(one.author, id))).toMatchObject({ result: "applied" });
      expect(await liveHistory(storage(), other.userId)).toMatchObject([{ id }]);
      expect(await applyOne(storage(), deletion(one.author, uuid()))).toEqual({ result: "not_found" });
    });

    test("a delete leaves a deletion where the item was, once", async () => {
      const { userId, author } = await createAccount(storage());
      const { id } = push(author);
      await applyOne(storage(), push(author, { id }));
      const deleted = await applyOne(storage(), deletion(author, id));
      expect(deleted).toMatchObject({ result: "applied", seq: 2, change: { kind: "history_deletion", seq: 2, id } });
      expect(await allChanges(storage(), userId)).toEqual([{ kind: "history_deletion", seq: 2, id }]);
      expect(await applyOne(storage(), deletion(author, id))).toEqual({ result: "duplicate", seq: 2, stored: null });
      expect(await storage().summary(userId)).toMatchObject({ seq: 2, historyItems: 0, storedBytes: 0 });
    });

    test("[W8] a deleted id does not come back; its content does, under a new id", async () => {
      const { author } = await createAccount(storage());
      const first = push(author, { contentHash: "same" });
      await applyOne(storage(), first);
      const deleted = await applyOne(storage(), deletion(author, first.id));
      expect(await applyOne(storage(), first)).toEqual({ result: "stale", seq: seqOf(deleted), winner: null });
      expect(await applyOne(storage(), push(author, { contentHash: "same" }))).toMatchObject({ result: "applied" });
    });

    test("writes of one batch to one item have the effect that they have one after the other", async () => {
      const { userId, author, second } = await createAccount(storage());
      const first = push(author, { contentHash: "same" });
      const anew = push(second, { contentHash: "same" });
      const third = push(author, { contentHash: "same" });
      const batch = await apply(storage(), [
        first,
        anew, // the content of the first
        deletion(second, first.id),
        slot(author),
        first, // deleted
        anew, // its content is free again
        third,
        deletion(author, first.id),
        deletion(author, anew.id),
        third,
      ]);
      expect(results(batch)).toEqual(
        "applied duplicate applied applied stale applied duplicate duplicate applied applied".split(" "),
      );
      const [progress] = batch.accounts;
      expect(progress?.changes.map(({ kind }) => kind)).toEqual([
        "history",
        "history_deletion",
        "slot",
        "history",
        "history_deletion",
        "history",
      ]);
      expect(await liveHistory(storage(), userId)).toMatchObject([{ id: third.id }]);
      expect(await storage().summary(userId)).toMatchObject({ historyItems: 1, seq: progress?.seq });
      expect((await allChanges(storage(), userId)).map(({ seq }) => seq)).toEqual(
        progress?.changes
          .slice(1)
          .filter((change) => change.kind !== "history" || change.id === third.id)
          .map(({ seq }) => seq) ?? [],
      );
    });
  });
}
