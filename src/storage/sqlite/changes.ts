/** Reads what changed after a seq, at a cost that grows with what is missed and not with the account. */
import type { Database } from "bun:sqlite";
import { and, asc, eq, gt, sql } from "drizzle-orm";
import { unionAll } from "drizzle-orm/sqlite-core";
import type { BunSQLiteDatabase } from "drizzle-orm/bun-sqlite";
import type { Change, ChangePage } from "../storage.ts";
import { historyTombstones, syncedHistory, syncedSlots, users } from "./schema.ts";

export type ChangesAfter = (userId: string, afterSeq: number, page: { limit: number; maxBytes: number }) => ChangePage;

/** Prepares Storage.changesAfter: all of a page is read in one snapshot. */
export function prepareChanges(client: Database, db: BunSQLiteDatabase): ChangesAfter {
  const given = sql.placeholder;
  // What changed, by seq, with sizes: SQLite tells a blob's length without reading it.
  const index = unionAll(
    db
      .select({
        seq: syncedSlots.seq,
        kind: sql<"slot" | "history" | "history_deletion">`'slot'`.as("kind"),
        key: sql<string>`CAST(${syncedSlots.slotNumber} AS TEXT)`.as("key"),
        bytes: sql<number>`length(${syncedSlots.encryptedBlob})`.as("bytes"),
      })
      .from(syncedSlots)
      .where(and(eq(syncedSlots.userId, given("userId")), gt(syncedSlots.seq, given("afterSeq")))),
    db
      .select({
        seq: syncedHistory.seq,
        kind: sql<"slot" | "history" | "history_deletion">`'history'`.as("kind"),
        // What was pushed one after the other stands so by rowid; by its random id it is all over the table.
        key: sql<string>`CAST(synced_history.rowid AS TEXT)`.as("key"),
        bytes: sql<number>`length(${syncedHistory.encryptedBlob})`.as("bytes"),
      })
      .from(syncedHistory)
      .where(and(eq(syncedHistory.userId, given("userId")), gt(syncedHistory.seq, given("afterSeq")))),
    db
      .select({
        seq: historyTombstones.seq,
        kind: sql<"slot" | "history" | "history_deletion">`'history_deletion'`.as("kind"),
        key: sql<string>`${historyTombstones.id}`.as("key"),
        bytes: sql<number>`0`.as("bytes"),
      })
      .from(historyTombstones)
      .where(and(eq(historyTombstones.userId, given("userId")), gt(historyTombstones.seq, given("afterSeq")))),
  )
    .orderBy(asc(sql`1`))
    .limit(given("limit"))
    .prepare();
  const counter = db
    .select({ seq: users.seq })
    .from(users)
    .where(eq(users.id, given("userId")))
    .prepare();
  const slot = db
    .select()
    .from(syncedSlots)
    .where(and(eq(syncedSlots.userId, given("userId")), eq(syncedSlots.slotNumber, given("key"))))
    .prepare();
  const item = db
    .select()
    .from(syncedHistory)
    .where(eq(sql`rowid`, given("key")))
    .prepare();

  // One snapshot for all of the page's reads: a command may write beside the server.
  return client.transaction(
    (userId: string, afterSeq: number, { limit, maxBytes }: { limit: number; maxBytes: number }): ChangePage => {
      const rows = index.all({ userId, afterSeq, limit: limit + 1 });
      const changes: Change[] = [];
      let bytes = 0;
      for (const row of rows) {
        bytes += row.bytes;
        if (changes.length === limit || (changes.length > 0 && bytes > maxBytes)) break;
        changes.push(read(userId, row));
      }
      const hasMore = changes.length < rows.length;
      const throughSeq = hasMore ? (changes.at(-1)?.seq ?? afterSeq) : (counter.get({ userId })?.seq ?? afterSeq);
      return { changes, throughSeq, hasMore };
    },
  );

  function read(
    userId: string,
    row: { kind: "slot" | "history" | "history_deletion"; key: string; seq: number },
  ): Change {
    if (row.kind === "history_deletion") return { kind: "history_deletion", seq: row.seq, id: row.key };
    if (row.kind === "slot") {
      const found = slot.get({ userId, key: Number(row.key) });
      if (found === undefined) throw new Error("a slot left the table while it was read");
      return {
        kind: "slot",
        seq: found.seq,
        slotNumber: found.slotNumber,
        blob: found.cleared ? null : found.encryptedBlob.toString("base64"),
        updatedBy: found.updatedBy,
        timestamp: found.updatedAt,
      };
    }
    const found = item.get({ key: Number(row.key) });
    if (found === undefined) throw new Error("a history item left the table while it was read");
    return {
      kind: "history",
      seq: found.seq,
      id: found.id,
      blob: found.encryptedBlob.toString("base64"),
      contentHash: found.contentHash,
      deviceId: found.deviceId,
      createdAt: found.createdAt,
      expiresAt: found.expiresAt,
    };
  }
}
