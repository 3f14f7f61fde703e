/** Everything that changed since a cursor: the twin of protocol 2's catch-up for clients without a socket. */
import { deadToken } from "../accounts/tokens.ts";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import { changeMessage, isDeletion, type Protocol } from "../protocol.ts";
import type { Storage } from "../storage/storage.ts";
import { encodeCursor, resumeAt } from "../sync/cursor.ts";
import { validate } from "../validate.ts";
import type { AppContext } from "./context.ts";
import { errorResponse } from "./errors.ts";

export interface ChangeDependencies {
  config: Config;
  protocol: Protocol;
  storage: Pick<Storage, "epoch" | "summary" | "changesAfter">;
}

/** Handlers of GET /api/sync/changes ([P10]). */
export function changeHandlers({ config, protocol, storage }: ChangeDependencies) {
  return {
    list: async (c: AppContext) => {
      const { cursor: text, limit } = validate(protocol.changesQuery, c.req.query());
      const { userId } = c.var.identity;
      const summary = await storage.summary(userId);
      if (summary === null) throw deadToken();
      const cursor = resumeAt(text, storage.epoch, summary);
      if ("resync" in cursor) {
        const error = new AppError("resync_required", "This cursor can't be continued: start over without one.");
        return errorResponse(c, error, { reason: cursor.resync });
      }
      const page = await storage.changesAfter(userId, cursor.seq, { limit, maxBytes: config.sync.changesPageBytes });
      const news = page.changes.filter((change) => change.seq > cursor.emptyUntilSeq || !isDeletion(change));
      const next = { seq: page.throughSeq, emptyUntilSeq: page.hasMore ? cursor.emptyUntilSeq : 0 };
      return c.json({
        changes: news.map(changeMessage),
        cursor: encodeCursor(storage.epoch, next),
        has_more: page.hasMore,
      });
    },
  };
}
