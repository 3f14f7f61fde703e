import type { AppError, ErrorCode } from "./errors.ts";
import type { Logger } from "./log.ts";

/** Answers that are not the client's doing, and whose cause no client is told. */
const OUTAGES: ReadonlySet<ErrorCode> = new Set(["unavailable", "disk_full"]);
const PAUSE_MS = 1_000;

/** Called with every error that is answered. */
export type OutageLog = (error: AppError) => void;

/** Logs why the database could not answer: at most once a second, since every request may run into it. */
export function createOutageLog(log: Logger, now: () => number = () => performance.now()): OutageLog {
  let quietUntil = -Infinity;
  let unlogged = 0;
  return (error) => {
    if (!OUTAGES.has(error.code)) return;
    if (now() < quietUntil) {
      unlogged += 1;
      return;
    }
    log.warn("the database could not answer", { error, code: error.code, since_last: unlogged });
    quietUntil = now() + PAUSE_MS;
    unlogged = 0;
  };
}
