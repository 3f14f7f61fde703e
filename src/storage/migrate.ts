/** Brings a database's schema up to date. */
import postgres from "postgres";
import { isDuplicate, translate } from "./postgres/faults.ts";
import { POSTGRES_MIGRATIONS } from "./postgres/migrations.ts";
import { NewerDatabaseError } from "./sqlite/migrations.ts";

/** Any number will do, as long as every server takes the same. */
const LOCK = "7164782637466742644";
/** The role may have a statement_timeout, as behind a pooler: a migration of much data takes longer than any request. */
const NO_TIMEOUT = "SET LOCAL statement_timeout = 0;";

/**
 * Applies the migrations that a PostgreSQL database lacks, in order. Several processes may do so at once.
 *
 * Each migration is one query of several statements, which PostgreSQL runs as one transaction (manual, "Multiple
 * Statements in a Simple Query"). The lock and the record of the migration are part of it, so that there is neither a
 * transaction over several round trips nor a lock of a session: it also works through a transaction pooler.
 *
 * @throws NewerDatabaseError when the database knows migrations that this program does not
 * @throws AppError `unavailable` when the database can't be reached
 */
export async function migratePostgres(url: string, { connectTimeoutSeconds }: { connectTimeoutSeconds: number }) {
  const sql = postgres(url, {
    max: 1,
    connect_timeout: connectTimeoutSeconds,
    fetch_types: false,
    onnotice: () => {},
    connection: { application_name: "clipslot-server migrate" },
  });
  try {
    for (;;) {
      const next = nextMigration(await appliedMigrations(sql));
      if (next === undefined) return;
      await apply(sql, next);
    }
  } catch (error) {
    throw error instanceof NewerDatabaseError ? error : translate(error);
  } finally {
    await sql.end({ timeout: connectTimeoutSeconds });
  }
}

async function appliedMigrations(sql: postgres.Sql): Promise<string[]> {
  const [found] = await sql<{ exists: boolean }[]>`SELECT to_regclass('schema_migrations') IS NOT NULL AS exists`;
  if (found?.exists !== true) {
    await sql.unsafe(`
      ${NO_TIMEOUT}
      SELECT pg_advisory_xact_lock(${LOCK});
      CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
    `);
  }
  const rows = await sql<{ name: string }[]>`SELECT name FROM schema_migrations ORDER BY name`;
  return rows.map(({ name }) => name);
}

function nextMigration(applied: readonly string[]) {
  const known = new Set<string>(POSTGRES_MIGRATIONS.map(({ name }) => name));
  const newer = applied.filter((name) => !known.has(name));
  if (newer.length > 0) {
    throw new NewerDatabaseError(
      `The database was written by a newer clipslot-server (it has ${newer.join(", ")}). Use that version, or a backup from before the upgrade.`,
    );
  }
  return POSTGRES_MIGRATIONS.find(({ name }) => !applied.includes(name));
}

async function apply(sql: postgres.Sql, migration: { name: string; sql: string }): Promise<void> {
  try {
    await sql.unsafe(`
      ${NO_TIMEOUT}
      SELECT pg_advisory_xact_lock(${LOCK});
      INSERT INTO schema_migrations (name) VALUES ('${migration.name}');
      ${migration.sql}
    `);
  } catch (error) {
    // While we waited for the lock another process applied it.
    if (!isDuplicate(error)) throw error;
  }
}
