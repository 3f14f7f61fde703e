/**
 * A PostgreSQL database as one end of a copy: one connection and one transaction, so that a source is read as it stood
 * at one moment and a target is filled whole or not at all. A command can afford such a transaction, a server can't
 * (see pool.ts): if the connection ends, so does the copy.
 */
import { getTableConfig, type PgTable } from "drizzle-orm/pg-core";
import postgres from "postgres";
import { newEpoch } from "../epoch.ts";
import { migratePostgres } from "../migrate.ts";
import { PAGE_BYTES, PAGE_ROWS, TransferError, type Row, type TransferEnd, type Value } from "../transfer.ts";
import { translate } from "./faults.ts";
import {
  devices,
  historyTombstones,
  invites,
  linkCodes,
  serverMeta,
  syncedHistory,
  syncedSlots,
  users,
} from "./schema.ts";

const CONNECT_TIMEOUT_SECONDS = 10;

interface Column {
  name: string;
  type: string;
}

const TABLES = new Map(
  [serverMeta, users, devices, syncedSlots, syncedHistory, historyTombstones, linkCodes, invites].map((table) => {
    const described = describe(table);
    return [described.name, described];
  }),
);

/**
 * @param url of the server itself, not of a pooler
 * @throws TransferError while servers are connected
 */
export async function openPostgresTransfer(url: string, role: "source" | "target"): Promise<TransferEnd> {
  await migratePostgres(url, { connectTimeoutSeconds: CONNECT_TIMEOUT_SECONDS });
  const connection = connect(url);
  const { run } = connection;
  try {
    await refuseServers(run);
    await run(role === "source" ? "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" : "BEGIN");
  } catch (error) {
    await connection.end();
    throw error;
  }

  return {
    tables: [...TABLES.keys()],
    columns: (table) => find(table).columns.map(({ name }) => name),
    async count(table) {
      const [row] = await run(`SELECT count(*)::float8 FROM ${find(table).name}`);
      return Number(row?.[0]);
    },
    async *rows(table) {
      const described = find(table);
      for (let after: Value[] | null = null; ;) {
        const page = await run(pageOf(described, after !== null), after ?? []);
        if (page.length === 0) return;
        yield page;
        after = keyOf(described, page.at(-1) ?? []);
      }
    },
    async insert(table, rows) {
      const { name, columns } = find(table);
      const places = rows.map(
        (_, row) => `(${columns.map((_column, index) => `$${row * columns.length + index + 1}`).join(",")})`,
      );
      await run(
        `INSERT INTO ${name} (${columns.map((column) => column.name).join(",")}) VALUES ${places.join(",")}`,
        rows.flatMap((row) => columns.map(({ type }, index) => toParameter(row[index] ?? null, type))),
      );
    },
    async clear() {
      await run("DELETE FROM server_meta");
    },
    async keep() {
      await run("COMMIT");
    },
    // The end of the connection takes back what was not committed.
    [Symbol.asyncDispose]: () => connection.end(),
  };
}

/**
 * Draws a new epoch, so that no cursor from before is served. A running server has the old one in memory.
 *
 * @throws TransferError while servers are connected
 */
export async function redrawPostgresEpoch(url: string): Promise<void> {
  await migratePostgres(url, { connectTimeoutSeconds: CONNECT_TIMEOUT_SECONDS });
  const { run, end } = connect(url);
  try {
    await refuseServers(run);
    await run("INSERT INTO server_meta (key, value) VALUES ('epoch', $1) ON CONFLICT (key) DO UPDATE SET value = $1", [
      newEpoch(),
    ]);
  } finally {
    await end();
  }
}

type Run = (query: string, parameters?: readonly Value[]) => Promise<Row[]>;

function connect(url: string): { run: Run; end: () => Promise<void> } {
  let lost = false;
  const sql = postgres(url, {
    max: 1,
    connect_timeout: CONNECT_TIMEOUT_SECONDS,
    idle_timeout: 0,
    max_lifetime: null,
    fetch_types: false,
    onnotice: () => {},
    onclose: () => (lost = true),
    connection: { application_name: "clipslot-server copy", TimeZone: "UTC", statement_timeout: 0 },
  });
  return {
    async run(query, parameters = []) {
      // postgres.js would connect again, and go on outside of the transaction.
      if (lost) throw new TransferError("The connection to PostgreSQL was lost; nothing was changed.");
      try {
        return (await sql.unsafe(query, [...parameters], { prepare: true }).values()) as Row[];
      } catch (error) {
        throw translate(error);
      }
    },
    end: () => sql.end({ timeout: 1 }),
  };
}

/** Servers would write beside the copy, and keep the old epoch; they are known by the name of their connections. */
async function refuseServers(run: Run): Promise<void> {
  const [row] = await run(
    "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'clipslot-server'",
  );
  if (row?.[0] !== 0)
    throw new TransferError("A clipslot-server is connected to this PostgreSQL database: stop all of them first.");
}

function find(table: string) {
  const described = TABLES.get(table);
  if (described === undefined) throw new Error(`no table ${table}`);
  return described;
}

type Table = ReturnType<typeof describe>;

function describe(table: PgTable) {
  const config = getTableConfig(table);
  const columns = config.columns
    .map((column): Column => ({ name: column.name, type: column.getSQLType() }))
    .sort((left, right) => (left.name < right.name ? -1 : 1));
  // By name: a key's own columns don't know their type (drizzle's ExtraConfigColumn asks itself, without end).
  const keyNames = (config.primaryKeys[0]?.columns ?? config.columns.filter(({ primary }) => primary)).map(
    ({ name }) => name,
  );
  const key = keyNames.flatMap((name) => columns.filter((column) => column.name === name));
  return { name: config.name, columns, key };
}

/**
 * The rows after a key. The sizes of blobs are summed up on the way, which PostgreSQL knows without reading them, so
 * that a page of the largest blobs is no larger than others.
 */
function pageOf({ name, columns, key }: Table, hasAfter: boolean): string {
  const order = key.map(inOrder).join(", ");
  const after = key.map(({ type }, index) => `$${index + 1}::${type}`).join(", ");
  const bytes = columns
    .filter(({ type }) => type === "bytea")
    .map((column) => `octet_length(${column.name})`)
    .join(" + ");
  return `
    SELECT ${columns.map(toRead).join(", ")}
    FROM (
      SELECT *, sum(${bytes || "0"}) OVER (ORDER BY ${order}) AS page_bytes, row_number() OVER (ORDER BY ${order}) AS page_row
      FROM (
        SELECT * FROM ${name}
        ${hasAfter ? `WHERE (${key.map(inOrder).join(", ")}) > (${after})` : ""}
        ORDER BY ${order} LIMIT ${PAGE_ROWS}
      ) AS candidates
    ) AS page
    WHERE page_row = 1 OR page_bytes <= ${PAGE_BYTES}
    ORDER BY ${order}`;
}

/** Text is compared as bytes, as SQLite does, whatever the database's language. */
function inOrder({ name, type }: Column): string {
  return type === "text" ? `${name} COLLATE "C"` : name;
}

function toRead({ name, type }: Column): string {
  if (type.startsWith("timestamp")) return `to_ms(${name})::float8`;
  if (type === "bigint") return `${name}::float8`;
  return type === "uuid" ? `${name}::text` : name;
}

function toParameter(value: Value, type: string): Value {
  return type.startsWith("timestamp") && typeof value === "number" ? new Date(value).toISOString() : value;
}

function keyOf({ columns, key }: Table, row: Row): Value[] {
  return key.map(({ name }) => row[columns.findIndex((column) => column.name === name)] ?? null);
}
