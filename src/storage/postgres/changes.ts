/** Reads what changed after a seq, at a cost that grows with what is missed and not with the account. */
import type { Change, ChangePage, SlotChange } from "../storage.ts";
import type { Sql } from "./pool.ts";

interface SlotRow {
  slot_number: number;
  blob: Buffer;
  cleared: boolean;
  device: string | null;
  at: number;
}

/** A row of the page: a change, or (seq null) that there is none; beside it what is known of the account. */
interface Row extends SlotRow {
  counter: number;
  has_more: boolean;
  kind: "slot" | "history" | "history_deletion";
  seq: number | null;
  id: string;
  content_hash: string;
  expires_at: number | null;
}

/**
 * Storage.changesAfter, in one statement and so of one moment: the counter belongs to the rows.
 *
 * Each source is an index scan that ends after a page. Sizes are known without reading a large blob (octet_length looks
 * at its pointer), so what is past the budget is never fetched from its own storage, nor sent.
 */
export async function changesAfter(
  sql: Sql,
  userId: string,
  afterSeq: number,
  { limit, maxBytes }: { limit: number; maxBytes: number },
): Promise<ChangePage> {
  const rows = await sql<Row[]>`
    WITH missed AS MATERIALIZED (
      (
        SELECT seq, 'slot' AS kind, slot_number, NULL::uuid AS id, encrypted_blob AS blob, cleared,
          NULL AS content_hash, updated_by AS device, updated_at AS at, NULL::timestamptz AS expires_at
        FROM synced_slots
        WHERE user_id = ${userId} AND seq > ${afterSeq}
        ORDER BY seq LIMIT ${limit}::integer + 1
      )
      UNION ALL
      (
        SELECT seq, 'history', NULL, id, encrypted_blob, NULL, content_hash, device_id, created_at, expires_at
        FROM synced_history
        WHERE user_id = ${userId} AND seq > ${afterSeq}
        ORDER BY seq LIMIT ${limit}::integer + 1
      )
      UNION ALL
      (
        SELECT seq, 'history_deletion', NULL, id, NULL, NULL, NULL, NULL, NULL, NULL
        FROM history_tombstones
        WHERE user_id = ${userId} AND seq > ${afterSeq}
        ORDER BY seq LIMIT ${limit}::integer + 1
      )
      ORDER BY seq LIMIT ${limit}::integer + 1
    ),
    measured AS (
      SELECT
        missed.*,
        row_number() OVER (ORDER BY seq) AS place,
        sum(octet_length(blob)) OVER (ORDER BY seq) AS bytes
      FROM missed
    ),
    page AS (
      SELECT * FROM measured WHERE place <= ${limit}::integer AND (place = 1 OR coalesce(bytes, 0) <= ${maxBytes}::bigint)
    )
    SELECT
      users.seq AS counter,
      (SELECT count(*) FROM missed) > (SELECT count(*) FROM page) AS has_more,
      page.seq, page.kind, page.slot_number, page.id, page.blob, page.cleared, page.content_hash, page.device,
      to_ms(page.at) AS at, to_ms(page.expires_at) AS expires_at
    FROM users
    LEFT JOIN page ON true
    WHERE users.id = ${userId}
    ORDER BY page.seq`;
  const changes = rows.flatMap((row) => (row.seq === null ? [] : [changeOf(row, row.seq)]));
  const hasMore = rows[0]?.has_more ?? false;
  const throughSeq = hasMore ? changes.at(-1)?.seq : rows[0]?.counter;
  return { changes, throughSeq: throughSeq ?? afterSeq, hasMore };
}

/** Storage.slot. */
export async function slotChange(sql: Sql, userId: string, slotNumber: number): Promise<SlotChange | null> {
  const [row] = await sql<(SlotRow & { seq: number })[]>`
    SELECT seq, slot_number, encrypted_blob AS blob, cleared, updated_by AS device, to_ms(updated_at) AS at
    FROM synced_slots WHERE user_id = ${userId} AND slot_number = ${slotNumber}`;
  return row === undefined ? null : slotOf(row, row.seq);
}

function slotOf(row: SlotRow, seq: number): SlotChange {
  return {
    kind: "slot",
    seq,
    slotNumber: row.slot_number,
    blob: row.cleared ? null : row.blob.toString("base64"),
    updatedBy: row.device,
    timestamp: row.at,
  };
}

function changeOf(row: Row, seq: number): Change {
  switch (row.kind) {
    case "slot":
      return slotOf(row, seq);
    case "history":
      return {
        kind: "history",
        seq,
        id: row.id,
        blob: row.blob.toString("base64"),
        contentHash: row.content_hash,
        deviceId: row.device,
        createdAt: row.at,
        expiresAt: row.expires_at,
      };
    case "history_deletion":
      return { kind: "history_deletion", seq, id: row.id };
  }
}
