/** Everything that changed since a cursor: the twin of protocol 2's catch-up for clients without a socket. */
import { deadToken } from "../accounts/tokens.ts";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import { changeMessage, type Protocol } from "../protocol.ts";
import type { AccountSummary, Change, Storage } from "../storage/storage.ts";
import { decodeCursor, encodeCursor, resyncReason, type ResyncReason } from "../sync/cursor.ts";
import { validate } from "../validate.ts";
import type { AppContext } from "./context.ts";
import { errorResponse } from "./errors.ts";

export interface ChangeDependencies {
  config: Config;
  protocol: Protocol;
  storage: Pick<Storage, "epoch" | "summary" | "changesAfter">;
}

/** Where a client stands. `startSeq` is set while it reads an account for the first time: the account's seq when it began. */
interface Place {
  seq: number;
  startSeq: number | null;
}

export function changeHandlers({ config, protocol, storage }: ChangeDependencies) {
  return {
    list: async (c: AppContext) => {
      const { cursor, limit } = validate(protocol.changesQuery, c.req.query());
      const { userId } = c.var.identity;
      const summary = await storage.summary(userId);
      if (summary === null) throw deadToken();
      const place = cursor === undefined ? { seq: 0, startSeq: summary.seq } : placeOf(cursor, summary);
      if ("resync" in place) {
        const error = new AppError("resync_required", "This cursor can't be continued: start over without one.");
        return errorResponse(c, error, { reason: place.resync });
      }
      const page = await storage.changesAfter(userId, place.seq, { limit, maxBytes: config.sync.changesPageBytes });
      const next = { seq: page.throughSeq, startSeq: page.hasMore ? place.startSeq : null };
      const news = page.changes.filter((change) => change.seq > (place.startSeq ?? 0) || !isDeletion(change));
      return c.json({ changes: news.map(changeMessage), cursor: encodePlace(next), has_more: page.hasMore });
    },
  };

  /**
   * A cursor older than the oldest tombstone may have missed a deletion. One in the middle of a first reading has
   * missed none: what was deleted before it began, it never saw.
   */
  function placeOf(cursor: string, account: AccountSummary): Place | { resync: ResyncReason } {
    const [cursorText = "", startText] = cursor.split("~");
    const decoded = decodeCursor(storage.epoch, cursorText);
    if ("resync" in decoded) return decoded;
    const startSeq = startText === undefined ? null : Number.parseInt(startText, 36);
    if (Number.isNaN(startSeq)) return { resync: "unknown_cursor" };
    const resync = resyncReason(Math.max(decoded.seq, startSeq ?? 0), account);
    return resync === undefined ? { seq: decoded.seq, startSeq } : { resync };
  }

  function encodePlace({ seq, startSeq }: Place): string {
    const cursor = encodeCursor(storage.epoch, seq);
    return startSeq === null ? cursor : `${cursor}~${startSeq.toString(36)}`;
  }
}

/** No news to a client that starts from nothing, later than it happened. */
function isDeletion(change: Change): boolean {
  return change.kind === "history_deletion" || (change.kind === "slot" && change.blob === null);
}
