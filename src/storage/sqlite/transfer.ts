/** A SQLite database as one end of a copy. No server may run on it: what it wrote meanwhile would be lost. */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { getTableConfig, type SQLiteTable } from "drizzle-orm/sqlite-core";
import { PAGE_BYTES, PAGE_ROWS, TransferError, type Row, type TransferEnd, type Value } from "../transfer.ts";
import { openSqliteFile } from "./open.ts";
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
import { eraseDeleted } from "./upkeep.ts";

const TABLES = new Map(
  [serverMeta, users, devices, syncedSlots, syncedHistory, historyTombstones, linkCodes, invites].map((table) => {
    const described = describe(table);
    return [described.name, described];
  }),
);

/** @param location of the database file, which ends in .db or is there, or of the folder that holds clipslot.db */
export function openSqliteTransfer(location: string, role: "source" | "target"): TransferEnd {
  const isFile = location.endsWith(".db") || (existsSync(location) && statSync(location).isFile());
  const path = isFile ? location : join(location, "clipslot.db");
  if (role === "source" && !existsSync(path)) throw new TransferError(`There is no database at ${path}.`);
  const file = openSqliteFile(path);
  const { client } = file;
  if (role === "source") eraseDeleted(client);
  client.run(role === "source" ? "BEGIN" : "BEGIN IMMEDIATE");

  return {
    tables: [...TABLES.keys()],
    columns: (table) => find(table).columns.map(({ name }) => name),
    async count(table) {
      return client.query<{ count: number }, []>(`SELECT count(*) AS count FROM ${find(table).name}`).get()?.count ?? 0;
    },
    async *rows(table) {
      const { name, columns, key } = find(table);
      const select = client.query<Record<string, Value>, []>(`SELECT * FROM ${name} ORDER BY ${key.join(", ")}`);
      let page: Row[] = [];
      let bytes = 0;
      for (const found of select.iterate()) {
        const row = columns.map((column) => toValue(found[column.name] ?? null, column.isBoolean));
        const size = row.reduce<number>((sum, value) => sum + (value instanceof Uint8Array ? value.length : 0), 0);
        if (page.length === PAGE_ROWS || (page.length > 0 && bytes + size > PAGE_BYTES)) {
          yield page;
          page = [];
          bytes = 0;
        }
        page.push(row);
        bytes += size;
      }
      if (page.length > 0) yield page;
    },
    async insert(table, rows) {
      const { name, columns } = find(table);
      const places = columns.map(() => "?").join(", ");
      const insert = client.query(
        `INSERT INTO ${name} (${columns.map((column) => column.name).join(", ")}) VALUES (${places})`,
      );
      for (const row of rows) insert.run(...row);
    },
    async clear() {
      client.run("DELETE FROM server_meta");
    },
    async keep() {
      client.run("COMMIT");
    },
    async [Symbol.asyncDispose]() {
      if (client.inTransaction) client.run("ROLLBACK");
      file.close();
    },
  };
}

function find(table: string) {
  const described = TABLES.get(table);
  if (described === undefined) throw new Error(`no table ${table}`);
  return described;
}

function describe(table: SQLiteTable) {
  const { name, columns, primaryKeys } = getTableConfig(table);
  const key = primaryKeys[0]?.columns ?? columns.filter(({ primary }) => primary);
  return {
    name,
    columns: columns
      .map((column) => ({ name: column.name, isBoolean: column.dataType === "boolean" }))
      .sort((left, right) => (left.name < right.name ? -1 : 1)),
    key: key.map((column) => column.name),
  };
}

/** SQLite has no booleans: 0 and 1. */
function toValue(stored: Value, isBoolean: boolean): Value {
  return isBoolean ? stored === 1 : stored;
}
