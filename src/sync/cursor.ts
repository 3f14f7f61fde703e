/**
 * A cursor says how far a device has come: the database's epoch and a seq. It is opaque to clients. The epoch is
 * drawn when the database is created and when a backup is restored, so a cursor from before never silently lies.
 */

/** @returns text that clients keep and send back as it is */
export function encodeCursor(epoch: string, seq: number): string {
  return `${epoch}-${seq.toString(36)}`;
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

export type DecodedCursor = { seq: number } | { resync: ResyncReason };

/** @returns the seq, or why the client has to start over */
export function decodeCursor(epoch: string, text: string): DecodedCursor {
  const parts = /^([0-9a-f]{16})-([0-9a-z]{1,11})$/.exec(text);
  if (parts === null) return { resync: "unknown_cursor" };
  const [, cursorEpoch = "", seqText = ""] = parts;
  const seq = Number.parseInt(seqText, 36);
  if (!Number.isSafeInteger(seq)) return { resync: "unknown_cursor" };
  return cursorEpoch === epoch ? { seq } : { resync: "other_epoch" };
}

/**
 * Whether changes after this seq can be served without missing one.
 *
 * @returns undefined when they can
 */
export function resyncReason(seq: number, account: { seq: number; oldestCursorSeq: number }): ResyncReason | undefined {
  if (seq > account.seq) return "ahead";
  return seq < account.oldestCursorSeq ? "too_old" : undefined;
}
