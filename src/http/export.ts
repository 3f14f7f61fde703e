/** Everything of an account, as one download. */
import type { Accounts } from "../accounts/accounts.ts";
import type { Devices } from "../accounts/devices.ts";
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import { formatTime } from "../protocol.ts";
import type { Storage } from "../storage/storage.ts";
import { nextTurn } from "../waiting.ts";
import type { AppContext } from "./context.ts";
import { deviceToWire } from "./devices.ts";
import { historyItemToWire } from "./history.ts";
import type { RateLimits } from "./rate-limits.ts";
import { slotsOneByOne } from "./slots.ts";
import { jsonArray, streamJson } from "./stream.ts";

export interface ExportDependencies {
  config: Config;
  log: Logger;
  storage: Pick<Storage, "slot" | "changesAfter">;
  accounts: Accounts;
  devices: Devices;
  limits: RateLimits;
}

/** The handler of GET /api/auth/export. */
export function exportHandler({ config, log, storage, accounts, devices, limits }: ExportDependencies) {
  /**
   * A JSON object with the account, its devices, its slots and its history, oldest first. It is written while it is
   * read, a page of history at a time and only as fast as the client takes it, so that an account of any size costs
   * the server one page. A write that comes meanwhile may be in it or not.
   */
  return async (c: AppContext) => {
    const { userId } = c.var.identity;
    limits.export(userId);
    const { user } = await accounts.describe(c.var.identity);
    const head = {
      format: "clipslot-export",
      version: 1,
      exported_at: formatTime(Date.now()),
      account: { user_id: user.id, email: user.email, created_at: formatTime(user.createdAt) },
      devices: (await devices.list(userId)).map(deviceToWire),
    };
    c.env.server.timeout(c.req.raw, config.http.exportIdleTimeoutSeconds);
    const name = `clipslot-export-${head.exported_at.slice(0, 10)}.json`;
    return streamJson(c, { log, limits }, jsonOf(head, slotsOneByOne(storage, userId, config), history(userId)), {
      "Content-Disposition": `attachment; filename="${name}"`,
    });
  };

  /** Live history in pages, oldest first, which is the order of changes. */
  async function* history(userId: string): AsyncGenerator<object> {
    const page = { limit: config.http.exportPageItems, maxBytes: config.http.exportPageBytes };
    for (let afterSeq = 0, hasMore = true; hasMore;) {
      const next = await storage.changesAfter(userId, afterSeq, page);
      for (const change of next.changes) {
        if (change.kind === "history") yield historyItemToWire(change);
      }
      ({ throughSeq: afterSeq, hasMore } = next);
      await nextTurn();
    }
  }
}

/** The text of `{...head, slots: [...], history: [...]}`, piece by piece. */
async function* jsonOf(
  head: object,
  slots: AsyncIterable<object>,
  history: AsyncIterable<object>,
): AsyncGenerator<string> {
  yield `${JSON.stringify(head).slice(0, -1)},"slots":`;
  yield* jsonArray(slots);
  yield ',"history":';
  yield* jsonArray(history);
  yield "}\n";
}
