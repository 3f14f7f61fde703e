/** Runs a long statement (VACUUM INTO, integrity_check) in a thread, so that the command can say how far it is. */
import { pathToFileURL } from "node:url";

export interface Job {
  path: string;
  sql: string;
  parameters: string[];
}

export type JobResult = { rows: Record<string, string | number | null>[] } | { fault: string };

const TICK_MS = 200;

/**
 * @param onTick called now and then while it runs
 * @throws Error with SQLite's words
 */
export async function runInThread(job: Job, onTick: () => void) {
  // From the entry point, because in the single binary that is where all else is (bun: bundler/executables, "Worker").
  const thread = new Worker(new URL("./storage/sqlite/thread.ts", pathToFileURL(Bun.main)));
  const ticking = setInterval(onTick, TICK_MS);
  try {
    const result = await new Promise<JobResult>((resolve, reject) => {
      thread.addEventListener("message", ({ data }: MessageEvent<JobResult>) => resolve(data));
      thread.addEventListener("error", ({ message }) => reject(new Error(message)));
      thread.postMessage(job);
    });
    if ("fault" in result) throw new SqliteFileError(result.fault);
    return result.rows;
  } finally {
    clearInterval(ticking);
    thread.terminate();
  }
}

/** What SQLite says of a file. */
export class SqliteFileError extends Error {
  override readonly name = "SqliteFileError";
}
