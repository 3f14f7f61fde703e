/** Opens the database file: one server process a file, settings, migrations, epoch. */
import { Database } from "bun:sqlite";
import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { migrateSqlite } from "./migrations.ts";

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
 * @param path of the database file; its folder is made when it is missing
 * @throws DatabaseInUseError when another server holds the file
 */
export function openSqliteFile(path: string): SqliteFile {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const lock = takeLock(path);
  try {
    const client = new Database(path, { create: true, strict: true });
    configure(client);
    migrateSqlite(client);
    return {
      client,
      epoch: readEpoch(client),
      close() {
        client.run("PRAGMA optimize");
        client.close();
        lock.close();
      },
    };
  } catch (error) {
    lock.close();
    throw error;
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
function takeLock(path: string): Database {
  const lock = new Database(`${path}.lock`, { create: true });
  try {
    lock.run("PRAGMA busy_timeout = 0");
    lock.run("BEGIN EXCLUSIVE");
    return lock;
  } catch (error) {
    lock.close();
    if (error instanceof Error && "code" in error && String(error.code).startsWith("SQLITE_BUSY")) {
      throw new DatabaseInUseError(
        `${path} is in use by another clipslot-server; run one server a data folder, or move to PostgreSQL`,
      );
    }
    throw error;
  }
}

function readEpoch(client: Database): string {
  const drawn = Buffer.from(crypto.getRandomValues(new Uint8Array(8))).toString("hex");
  client.query("INSERT INTO server_meta (key, value) VALUES ('epoch', ?) ON CONFLICT (key) DO NOTHING").run(drawn);
  const row = client.query<{ value: string }, []>("SELECT value FROM server_meta WHERE key = 'epoch'").get();
  if (row === null) throw new Error("the database has no epoch");
  return row.value;
}
