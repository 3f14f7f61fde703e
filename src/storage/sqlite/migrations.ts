/** The SQLite migrations, embedded, and their runner. */
import type { Database } from "bun:sqlite";
import initial from "../../../drizzle/sqlite/0000_initial.sql" with { type: "text" };

/** In order; a new one is appended after `drizzle-kit generate` wrote it. */
export const SQLITE_MIGRATIONS = [{ name: "0000_initial", sql: initial }] as const;

/** The database was written by a newer server than this one. */
export class NewerDatabaseError extends Error {
  override readonly name = "NewerDatabaseError";
}

/**
 * Brings the schema up to date, in one immediate transaction: another process that migrates waits, then finds it done.
 * Foreign keys are off meanwhile (the pragma does nothing inside a transaction, and a table rebuild would otherwise
 * delete child rows by cascade), and checked before the commit.
 */
export function migrateSqlite(client: Database): void {
  client.run("PRAGMA foreign_keys = OFF");
  client
    .transaction(() => {
      client.run("CREATE TABLE IF NOT EXISTS schema_migrations (name TEXT PRIMARY KEY, applied_at INTEGER NOT NULL)");
      const applied = new Set(
        client
          .query<{ name: string }, []>("SELECT name FROM schema_migrations")
          .all()
          .map(({ name }) => name),
      );
      const known = new Set<string>(SQLITE_MIGRATIONS.map(({ name }) => name));
      const newer = [...applied].filter((name) => !known.has(name));
      if (newer.length > 0)
        throw new NewerDatabaseError(
          `the database was written by a newer clipslot-server (it has ${newer.join(", ")})`,
        );
      for (const migration of SQLITE_MIGRATIONS) {
        if (applied.has(migration.name)) continue;
        client.run(migration.sql);
        client.query("INSERT INTO schema_migrations (name, applied_at) VALUES (?, ?)").run(migration.name, Date.now());
      }
      const orphans = client.query("PRAGMA foreign_key_check").all();
      if (orphans.length > 0) throw new Error(`a migration left ${orphans.length} rows without their parent`);
    })
    .immediate();
  client.run("PRAGMA foreign_keys = ON");
}
