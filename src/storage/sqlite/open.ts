/** Opens the database file: one server process a file, settings, migrations, epoch. */
import { Database } from "bun:sqlite";
import { chownSync, closeSync, existsSync, mkdirSync, openSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { newEpoch } from "../epoch.ts";
import { migrateSqlite, pendingSqliteMigrations } from "./migrations.ts";

export interface SqliteFile {
  client: Database;
  epoch: string;
  close(): void;
}

/** The file is in use by another server process. */
export class DatabaseInUseError extends Error {
  override readonly name = "DatabaseInUseError";
}

/**
 * Opens the file for a server, alone.
 *
 * @param path of the database file; its folder is made when it is missing
 * @throws DatabaseInUseError when another server holds the file
 */
export function openSqliteFile(path: string): SqliteFile {
  const lock = takeLock(path);
  try {
    makeFile(path);
    const isNew = statSync(path).size === 0;
    const client = new Database(path, { create: true, strict: true });
    // Nothing is there that a journal on the disk could bring back, and three syncs fewer are a tenth of a first start.
    if (isNew) client.run("PRAGMA journal_mode = MEMORY");
    configure(client);
    migrateSqlite(client);
    return {
      client,
      epoch: readEpoch(client),
      close() {
        client.close();
        lock.close();
      },
    };
  } catch (error) {
    lock.close();
    throw error;
  }
}

/**
 * Opens the file for a command, beside a server that may be running. The schema is not changed under a server's feet:
 * it is brought up to date only while none runs.
 *
 * @throws DatabaseInUseError when a server of another version holds the file
 */
export function openSqliteFileBeside(path: string): SqliteFile {
  makeFile(path);
  const client = new Database(path, { create: true, strict: true });
  try {
    configure(client);
    if (pendingSqliteMigrations(client).length > 0) migrateAlone(path, client);
    return { client, epoch: readEpoch(client), close: () => client.close() };
  } catch (error) {
    client.close();
    throw error;
  }
}

/** The folder and the file, when they are missing, readable by their owner alone; SQLite's own files take after it. */
function makeFile(path: string): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  if (existsSync(path)) return;
  closeSync(openSync(path, "a", 0o600));
  giveToOwnerOfFolder(path);
}

/** A command run by root must not leave files that the server's own user can't open. */
export function giveToOwnerOfFolder(path: string): void {
  if (process.getuid?.() !== 0) return;
  const { uid, gid } = statSync(dirname(path));
  chownSync(path, uid, gid);
}

function migrateAlone(path: string, client: Database): void {
  const lock = takeLock(path);
  try {
    migrateSqlite(client);
  } finally {
    lock.close();
  }
}

/** FULL: a commit is on the disk when it returns, which [W1] promises; the writer's group commit pays for it. */
export function configure(client: Database): void {
  client.run("PRAGMA journal_mode = WAL");
  client.run("PRAGMA synchronous = FULL");
  client.run("PRAGMA foreign_keys = ON");
  client.run("PRAGMA busy_timeout = 5000");
}

/**
 * A second server on one file would relay nothing of the first one's writes. The lock is an exclusive transaction on
 * a file beside the database, so the kernel lets go of it however the process ends, and commands (backup, user) can
 * still open the database itself.
 */
export function takeLock(path: string): Database {
  makeFile(`${path}.lock`);
  const lock = new Database(`${path}.lock`, { create: true });
  try {
    lock.run("PRAGMA busy_timeout = 0");
    lock.run("BEGIN EXCLUSIVE");
    return lock;
  } catch (error) {
    lock.close();
    if (error instanceof Error && "code" in error && String(error.code).startsWith("SQLITE_BUSY")) {
      throw new DatabaseInUseError(
        `${path} is in use by another clipslot-server: stop that one first. One server a data folder; several share PostgreSQL.`,
      );
    }
    throw error;
  }
}

function readEpoch(client: Database): string {
  const stored = client.query<{ value: string }, []>("SELECT value FROM server_meta WHERE key = 'epoch'");
  const row = stored.get();
  if (row !== null) return row.value;
  client.query("INSERT INTO server_meta (key, value) VALUES ('epoch', ?) ON CONFLICT (key) DO NOTHING").run(newEpoch());
  return readEpoch(client);
}

/** From here on no cursor that was given out before is served: it would speak of changes this database never had. */
export function redrawEpoch(client: Database): void {
  client.query("UPDATE server_meta SET value = ? WHERE key = 'epoch'").run(newEpoch());
}
