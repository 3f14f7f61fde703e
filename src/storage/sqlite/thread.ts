/**
 * The other side of in-thread.ts: runs one statement on a database file, in a thread of its own. An entry point of the
 * build (src/build.ts), because threads start from a file.
 */
import { Database } from "bun:sqlite";
import type { Job, JobResult } from "./in-thread.ts";

declare const self: Worker;

self.addEventListener("message", ({ data }: MessageEvent<Job>) => self.postMessage(run(data)));

function run({ path, sql, parameters }: Job): JobResult {
  try {
    using client = new Database(path, { readwrite: true, create: false, strict: true });
    client.run("PRAGMA busy_timeout = 5000");
    // For what VACUUM INTO writes, which backup.ts syncs itself, in small pieces.
    client.run("PRAGMA synchronous = OFF");
    return { rows: client.query<Record<string, string | number | null>, string[]>(sql).all(...parameters) };
  } catch (error) {
    return { fault: error instanceof Error ? error.message : String(error) };
  }
}
