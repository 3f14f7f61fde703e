/**
 * Backups of a SQLite database: taken beside a running server, which goes on writing, and put back while none runs.
 * Both write under another name first and give the name at the end, so that a file of that name is always whole.
 */
import { Database } from "bun:sqlite";
import { existsSync, statSync } from "node:fs";
import { chmod, link, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { migrateSqlite } from "./migrations.ts";
import { configure, giveToOwnerOfFolder, redrawEpoch, takeLock } from "./open.ts";
import { runInThread, SqliteFileError } from "./in-thread.ts";

/** Told how many bytes of how many are done; `checking` reads what was written. */
export type OnProgress = (step: "copying" | "checking", done: number, total: number) => void;

const COPY_BYTES = 1024 * 1024;
const SYNC_PAUSE_MS = 5;

/** The name is taken: nothing is ever overwritten. */
export class FileExistsError extends Error {
  override readonly name = "FileExistsError";
}

/**
 * Writes the database as it stands now to a new file. It holds every write that was acknowledged before this began.
 *
 * @returns the file's size in bytes
 * @throws FileExistsError; SqliteFileError
 */
export async function backupSqlite(path: string, target: string, onProgress: OnProgress): Promise<number> {
  if (existsSync(target)) throw new FileExistsError(`${target} exists already: choose another name.`);
  const draft = `${target}.${process.pid}.partial`;
  try {
    // Made before SQLite writes into it, so that it is never readable by others.
    await (await open(draft, "wx", 0o600)).close();
    const total = statSync(path).size;
    const job = { path, sql: "VACUUM INTO ?", parameters: [draft] };
    await syncedMeanwhile(
      draft,
      runInThread(job, () => onProgress("copying", statSync(draft).size, total)),
    );
    await checkSqlite(draft, onProgress);
    await syncFile(draft);
    await nameOnce(draft, target);
    await syncFolder(target);
    return statSync(target).size;
  } finally {
    await rm(draft, { force: true });
    await rm(`${draft}-journal`, { force: true });
  }
}

/**
 * Puts a backup in the place of the database, whose file is kept beside it. The schema is brought up to date, and a
 * new epoch drawn: what clients got after the backup was taken is gone, so their cursors must not be served.
 *
 * @returns where the old database is kept; null when there was none
 * @throws SqliteFileError; NewerDatabaseError; DatabaseInUseError while a server runs
 */
export async function restoreSqlite(backup: string, path: string, now: Date, onProgress: OnProgress) {
  const lock = takeLock(path);
  const draft = `${path}.${process.pid}.restoring`;
  try {
    await copyFile(backup, draft, onProgress);
    await checkSqlite(draft, onProgress);
    prepareRestored(draft);
    giveToOwnerOfFolder(draft);
    await syncFile(draft);
    const kept = await setAside(path, now);
    await rename(draft, path);
    await syncFolder(path);
    return kept;
  } finally {
    for (const suffix of ["", "-wal", "-shm", "-journal"]) await rm(draft + suffix, { force: true });
    lock.close();
  }
}

/** Draws a new epoch in the database where it stands, for those who put a copy back by other means. */
export function redrawSqliteEpoch(path: string): void {
  const lock = takeLock(path);
  try {
    using client = new Database(path, { readwrite: true, create: false, strict: true });
    configure(client);
    redrawEpoch(client);
  } finally {
    lock.close();
  }
}

/** @throws SqliteFileError when the file is damaged, or no database of a ClipSlot server */
async function checkSqlite(path: string, onProgress: OnProgress): Promise<void> {
  const { size } = statSync(path);
  const check = (sql: string) => runInThread({ path, sql, parameters: [] }, () => onProgress("checking", size, size));
  const tables = await check(
    "SELECT name FROM sqlite_schema WHERE name IN ('schema_migrations', 'server_meta', 'users')",
  );
  if (tables.length < 3) throw new SqliteFileError("it is no database of a ClipSlot server");
  const [verdict] = await check("PRAGMA integrity_check(1)");
  if (verdict?.["integrity_check"] !== "ok")
    throw new SqliteFileError(String(verdict?.["integrity_check"]).replaceAll(/\s+/g, " "));
  const orphans = await check("PRAGMA foreign_key_check");
  if (orphans.length > 0) throw new SqliteFileError(`${orphans.length} of its rows belong to no account`);
}

function prepareRestored(path: string): void {
  using client = new Database(path, { readwrite: true, create: false, strict: true });
  configure(client);
  migrateSqlite(client);
  redrawEpoch(client);
  // Everything into the one file that is going to be renamed.
  client.run("PRAGMA journal_mode = DELETE");
}

/** Renames the database, with the journal it may still have. Without one first: a journal must never meet another file. */
async function setAside(path: string, now: Date): Promise<string | null> {
  if (!existsSync(path)) return null;
  closeJournal(path);
  const kept = `${path}.before-restore-${now.toISOString().replace(/[-:]|\.\d+/g, "")}`;
  if (existsSync(kept)) throw new FileExistsError(`${kept} exists already; try again in a second.`);
  if (existsSync(`${path}-wal`)) await rename(`${path}-wal`, `${kept}-wal`);
  await rm(`${path}-shm`, { force: true });
  await rename(path, kept);
  return kept;
}

/** Takes what the journal holds into the database, if that can still be read: it may be damaged, hence the restore. */
function closeJournal(path: string): void {
  try {
    using client = new Database(path, { readwrite: true, create: false, strict: true });
    client.run("PRAGMA journal_mode = DELETE");
  } catch {
    // It is kept as it is, with its journal.
  }
}

async function copyFile(source: string, target: string, onProgress: OnProgress): Promise<void> {
  await using reading = await open(source, "r");
  await using writing = await open(target, "wx", 0o600);
  const { size } = await reading.stat();
  const buffer = Buffer.alloc(COPY_BYTES);
  for (let done = 0; ;) {
    const { bytesRead } = await reading.read(buffer, 0, COPY_BYTES, done);
    if (bytesRead === 0) return;
    await writing.write(buffer, 0, bytesRead, done);
    done += bytesRead;
    onProgress("copying", done, size);
  }
}

/** Gives the finished file its name, unless that is taken by now. */
async function nameOnce(draft: string, target: string): Promise<void> {
  try {
    await link(draft, target);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    if (code === "EEXIST") throw new FileExistsError(`${target} exists already: choose another name.`);
    // A file system without hard links, such as a USB stick's: the moment between look and rename has to do.
    if (existsSync(target)) throw new FileExistsError(`${target} exists already: choose another name.`);
    await rename(draft, target);
  }
}

/**
 * Syncs a file over and over while it is being written. Left until the end, all of it would be one sync, and a server's
 * commits beside it would wait for that: ext4 writes what any file has in its cache before it finishes a commit of its
 * journal (with 380 MB, writes waited 470 ms at most; so, 120 ms).
 */
async function syncedMeanwhile<T>(path: string, work: Promise<T>): Promise<T> {
  let working = true;
  const done = work.finally(() => (working = false));
  await using file = await open(path, "r+");
  const syncing = (async () => {
    for (; working; await Bun.sleep(SYNC_PAUSE_MS)) await file.datasync();
  })();
  // Both, so that neither is left running when the other fails.
  const [result, synced] = await Promise.allSettled([done, syncing]);
  if (result.status === "rejected") throw result.reason;
  if (synced.status === "rejected") throw synced.reason;
  return result.value;
}

async function syncFile(path: string): Promise<void> {
  await chmod(path, 0o600);
  await using file = await open(path, "r+");
  await file.sync();
}

/** So that the new name survives a power cut; Windows has no such call. */
async function syncFolder(path: string): Promise<void> {
  if (process.platform === "win32") return;
  await using folder = await open(dirname(path), "r");
  await folder.sync();
}
