/**
 * Removes what is past its time, account by account: history with an `expires_at` that has come (told to devices as a
 * deletion), and tombstones older than `tombstoneLifeMs` or more than `tombstonesPerAccount`, which moves the oldest
 * cursor that can still be served.
 */
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import type { AccountProgress, Storage } from "../storage/storage.ts";
import { nextTurn } from "../waiting.ts";

/** Accounts read at once. */
const PAGE_ACCOUNTS = 100;
/** Rows removed in one transaction. */
const STEP_ROWS = 500;

export interface Retention {
  /** Goes once over all accounts; resolves when it is through, or the signal says to stop. */
  sweep(now: number): Promise<void>;
}

export interface RetentionOptions {
  storage: Pick<Storage, "users" | "retain">;
  config: Config;
  log: Logger;
  /** Hears of every deletion, as of any other commit. */
  onCommit: (commits: (AccountProgress & { origins: [] })[]) => void;
  signal: AbortSignal;
}

/** Its owner calls `sweep` now and then. */
export function createRetention({ storage, config, log, onCommit, signal }: RetentionOptions): Retention {
  return {
    async sweep(now) {
      try {
        for (let after: string | null = null; ;) {
          const page = await storage.users(after, PAGE_ACCOUNTS);
          for (const { id } of page) {
            await sweepAccount(id, now);
            await nextTurn();
            if (signal.aborted) return;
          }
          after = page.at(-1)?.id ?? null;
          if (after === null) return;
        }
      } catch (error) {
        log.warn("what is past its time could not be removed; it will be the next time", { error });
      }
    },
  };

  async function sweepAccount(userId: string, now: number): Promise<void> {
    const { tombstoneLifeMs, tombstonesPerAccount: tombstones } = config.sync;
    const bounds = { tombstonesBefore: now - tombstoneLifeMs, tombstones, limit: STEP_ROWS };
    while (!signal.aborted) {
      const retained = await storage.retain(userId, now, bounds);
      if (retained === null) return;
      const { hasMore, ...progress } = retained;
      if (progress.changes.length > 0) onCommit([{ ...progress, origins: [] }]);
      if (!hasMore) return;
      await nextTurn();
    }
  }
}
