/**
 * Makes commits durable without stopping the event loop.
 *
 * With `synchronous = FULL` SQLite calls fsync inside of COMMIT, and the whole process waits for the disk. So the
 * commit itself runs with `synchronous = NORMAL` (it writes the log and does not wait), and the log is synced by a
 * thread while the loop gathers the next batch. The promise is the same ([W1]): nobody hears of a commit before it is
 * on the disk, neither its writer nor a reader, because reads wait for the commits they may have seen.
 *
 * When the log can't be synced, the kernel may have dropped what it could not write and will not say so again
 * (fsync(2), "EIO"). From then on nothing counts as durable until a checkpoint has written everything to the database
 * file itself, and started the log anew.
 */
import type { Database } from "bun:sqlite";
import { closeSync, fdatasync, fdatasyncSync, openSync } from "node:fs";
import { promisify } from "node:util";
import { AppError } from "../../errors.ts";

/**
 * From so many writes on the log is synced in a thread. For fewer, the way to a thread and back is expected to take
 * longer than the loop gains. The number is a choice, not a measurement.
 */
const IN_THREAD_WRITES = 8;

const fdatasyncInThread = promisify(fdatasync);

export interface Durability {
  /** Notes that a transaction of so many writes has just been committed. */
  committed(writes: number): void;
  /**
   * Resolves when all that has been committed so far is on the disk.
   *
   * @throws AppError `unavailable` when the disk refuses
   */
  settled(): Promise<void>;
  close(): void;
}

/** @param path of the database file; its log (sqlite.org/wal.html) lies beside it while the database is open */
export function createDurability(client: Database, path: string): Durability {
  client.run("PRAGMA synchronous = NORMAL");
  const log = openSync(`${path}-wal`, "r+");
  let commits = 0;
  let synced = 0;
  let syncing: Promise<void> | undefined;
  let suspect = false;
  let unsyncedWrites = 0;

  return {
    committed(writes) {
      commits += 1;
      unsyncedWrites += writes;
    },
    async settled() {
      const target = commits;
      while (synced < target) {
        syncing ??= sync().finally(() => {
          syncing = undefined;
        });
        await syncing;
      }
    },
    close() {
      closeSync(log);
    },
  };

  async function sync(): Promise<void> {
    const target = commits;
    try {
      const inThread = unsyncedWrites >= IN_THREAD_WRITES;
      unsyncedWrites = 0;
      if (suspect) startAnew();
      else if (inThread) await fdatasyncInThread(log);
      else fdatasyncSync(log);
      synced = target;
    } catch (cause) {
      suspect = true;
      throw new AppError("unavailable", "The disk did not take the data.", { cause, retryAfterMs: 2_000 });
    }
  }

  /** Checkpoints everything and truncates the log; SQLite syncs both files on the way. */
  function startAnew(): void {
    fdatasyncSync(log);
    const result = client.query<{ busy: number }, []>("PRAGMA wal_checkpoint(TRUNCATE)").get();
    if (result?.busy !== 0) throw new Error("the log could not be emptied");
    suspect = false;
  }
}
