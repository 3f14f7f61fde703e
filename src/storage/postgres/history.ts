/** Reads the history page by page, at a cost that grows with the page and not with the account. */
import type { HistoryPage, HistoryPosition, StoredHistoryItem } from "../storage.ts";
import type { Sql } from "./pool.ts";
import { instantText } from "./schema.ts";

interface Row {
  id: string;
  /** null: past the budget. */
  blob: Buffer | null;
  content_hash: string;
  device: string | null;
  created_at: number;
  expires_at: number | null;
  seq: number;
}

/**
 * Storage.history, in one statement. It is hot: one pass over the index, without a second sort, and rows past the
 * budget come without their blobs.
 *
 * As in changes.ts, sizes are known without reading a large blob. No blob is empty, so the first alone is as large as
 * the sum up to it.
 */
export async function history(
  sql: Sql,
  userId: string,
  {
    limit,
    offset,
    before,
    maxBytes,
  }: { limit: number; offset: number; before: HistoryPosition | null; maxBytes: number },
): Promise<HistoryPage> {
  const rows = await sql<Row[]>`
    SELECT
      id,
      CASE WHEN bytes <= ${maxBytes}::bigint OR bytes = octet_length(blob) THEN blob END AS blob,
      content_hash, device, to_ms(created_at) AS created_at, to_ms(expires_at) AS expires_at, seq
    FROM (
      SELECT *, sum(octet_length(blob)) OVER (ORDER BY created_at DESC, id DESC ROWS UNBOUNDED PRECEDING) AS bytes
      FROM (
        SELECT id, encrypted_blob AS blob, content_hash, device_id AS device, created_at, expires_at, seq
        FROM synced_history
        WHERE user_id = ${userId} ${before === null ? sql`` : olderThan(sql, before)}
        ORDER BY created_at DESC, id DESC LIMIT ${limit}::integer + 1 OFFSET ${offset}::bigint
      ) AS asked
    ) AS measured
    ORDER BY measured.created_at DESC, id DESC`;
  const items: StoredHistoryItem[] = [];
  for (const { blob, ...row } of rows) {
    if (items.length === limit || blob === null) return { items, hasMore: true };
    items.push(itemOf(row, blob));
  }
  return { items, hasMore: false };
}

/** Storage.historyPosition: of the index alone. */
export async function historyPosition(
  sql: Sql,
  userId: string,
  { before, offset }: { before: HistoryPosition; offset: number },
): Promise<HistoryPosition | null> {
  const [found] = await sql<{ id: string; created_at: number }[]>`
    SELECT id, to_ms(created_at) AS created_at
    FROM synced_history
    WHERE user_id = ${userId} ${olderThan(sql, before)}
    ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ${offset}::bigint`;
  return found === undefined ? null : { createdAt: found.created_at, id: found.id };
}

/** The keyset as one comparison of rows, which idx_synced_history_user answers in its own order. */
function olderThan(sql: Sql, { createdAt, id }: HistoryPosition) {
  return sql`AND (created_at, id) < (${instantText(createdAt)}::timestamptz, ${id}::uuid)`;
}

function itemOf(row: Omit<Row, "blob">, blob: Buffer): StoredHistoryItem {
  return {
    id: row.id,
    blob: blob.toString("base64"),
    contentHash: row.content_hash,
    deviceId: row.device,
    createdAt: row.created_at,
    expiresAt: row.expires_at,
    seq: row.seq,
  };
}
