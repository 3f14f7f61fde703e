/**
 * A cursor says how far a device has come: the database's epoch and a seq. It is opaque to clients. The epoch is
 * drawn when the database is created and when a backup is restored, so a cursor from before never silently lies.
 *
 * A device that starts from nothing is not told of what was deleted before: it never had it. While its first reading
 * goes on, its cursor also names the seq at which that began.
 */

export interface Cursor {
  /** Everything up to here is known. */
  seq: number;
  /** Deletions up to here are no news; 0 once the first reading is complete. */
  emptyUntilSeq: number;
}

/** Why a cursor can't be served: the client starts over with none. */
export type ResyncReason =
  /** Not one this server drew. */
  | "unknown_cursor"
  /** Of another database, or of this one before a backup was restored. */
  | "other_epoch"
  /** Beyond the account's counter. */
  | "ahead"
  /** Older than the oldest deletion that is still remembered. */
  | "too_old";

/** @returns text that clients keep and send back as it is */
export function encodeCursor(epoch: string, { seq, emptyUntilSeq }: Cursor): string {
  const text = `${epoch}-${seq.toString(36)}`;
  return emptyUntilSeq > seq ? `${text}-${emptyUntilSeq.toString(36)}` : text;
}

/**
 * Where to go on.
 *
 * @param text what the client kept; undefined or empty when it starts from nothing
 * @returns the cursor, or why the client has to start over
 */
export function resumeAt(
  text: string | undefined,
  epoch: string,
  account: { seq: number; oldestCursorSeq: number },
): Cursor | { resync: ResyncReason } {
  if (text === undefined || text === "") return { seq: 0, emptyUntilSeq: account.seq };
  const [, cursorEpoch, seqText = "", untilText = "0"] =
    /^([0-9a-f]{16})-([0-9a-z]{1,10})(?:-([0-9a-z]{1,10}))?$/.exec(text) ?? [];
  if (cursorEpoch === undefined) return { resync: "unknown_cursor" };
  if (cursorEpoch !== epoch) return { resync: "other_epoch" };
  const cursor = { seq: Number.parseInt(seqText, 36), emptyUntilSeq: Number.parseInt(untilText, 36) };
  if (Math.max(cursor.seq, cursor.emptyUntilSeq) > account.seq) return { resync: "ahead" };
  if (Math.max(cursor.seq, cursor.emptyUntilSeq) < account.oldestCursorSeq) return { resync: "too_old" };
  return cursor;
}
