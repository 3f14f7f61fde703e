/** The SQLite migrations, embedded, and their runner. */
import type { Database } from "bun:sqlite";
import initial from "../../../drizzle/sqlite/0000_initial.sql" with { type: "text" };
import presence from "../../../drizzle/sqlite/0001_presence.sql" with { type: "text" };
import upkeep from "../../../drizzle/sqlite/0002_upkeep.sql" with { type: "text" };

/** In order; a new one is appended after `drizzle-kit generate` wrote it. */
const SQLITE_MIGRATIONS = [
  { name: "0000_initial", sql: initial },
  { name: "0001_presence", sql: presence },
  { name: "0002_upkeep", sql: upkeep },
] as const;

/** The database was written by a newer server than this one. */
export class NewerDatabaseError extends Error {
  override readonly name = "NewerDatabaseError";
}

/**
 * What a database still lacks, in order.
 *
 * @throws NewerDatabaseError
 */
export function pendingSqliteMigrations(client: Database): readonly { name: string; sql: string }[] {
  const started = client.query("SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations'").get() !== null;
  if (!started) return SQLITE_MIGRATIONS;
  const rows = client.query<{ name: string }, []>("SELECT name FROM schema_migrations").all();
  const applied = new Set(rows.map(({ name }) => name));
  const known = new Set<string>(SQLITE_MIGRATIONS.map(({ name }) => name));
  const newer = [...applied].filter((name) => !known.has(name));
  if (newer.length > 0)
    throw new NewerDatabaseError(
      `The database was written by a newer clipslot-server (it has ${newer.join(", ")}): use that version, or a backup from before.`,
    );
  return SQLITE_MIGRATIONS.filter(({ name }) => !applied.has(name));
}

/**
 * Brings the schema up to date, in one immediate transaction: another process that migrates waits, then finds it done.
 * Foreign keys are off meanwhile (the pragma does nothing inside a transaction, and a table rebuild would otherwise
 * delete child rows by cascade), and checked before the commit.
 *
 * @returns the names of the migrations that were missing
 */
export function migrateSqlite(client: Database): string[] {
  if (pendingSqliteMigrations(client).length === 0) return [];
  client.run("PRAGMA foreign_keys = OFF");
  const migrated = client
    .transaction(() => {
      client.run("CREATE TABLE IF NOT EXISTS schema_migrations (name TEXT PRIMARY KEY, applied_at INTEGER NOT NULL)");
      const pending = pendingSqliteMigrations(client);
      for (const migration of pending) {
        client.run(migration.sql);
        client.query("INSERT INTO schema_migrations (name, applied_at) VALUES (?, ?)").run(migration.name, Date.now());
      }
      const orphans = client.query("PRAGMA foreign_key_check").all();
      if (orphans.length > 0) throw new Error(`a migration left ${orphans.length} rows without their parent`);
      return pending.map(({ name }) => name);
    })
    .immediate();
  client.run("PRAGMA foreign_keys = ON");
  return migrated;
}
