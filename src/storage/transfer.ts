/**
 * The port for moving a whole database to another: every table as plain rows, with the same columns in the same order
 * whatever the dialect, so that two databases hold the same when their rows are equal one by one.
 */

/** Ids and text as strings, times and counts as numbers, blobs as bytes. */
export type Value = string | number | boolean | Uint8Array | null;

/** The values of a row's columns, by the columns' names in alphabetical order. */
export type Row = Value[];

/** Pages that rows travel in: what is in memory at a time. */
export const PAGE_ROWS = 500;
export const PAGE_BYTES = 4 * 1024 * 1024;

/** One end of a copy. Let go of without `keep`, a database is left as it was found. */
export interface TransferEnd extends AsyncDisposable {
  /** By name, in an order in which no row comes before one it refers to. */
  readonly tables: readonly string[];
  columns(table: string): readonly string[];
  count(table: string): Promise<number>;
  /** All rows in the order of their keys, compared as bytes, in pages of at most PAGE_ROWS and (but for a single row) PAGE_BYTES of blobs. */
  rows(table: string): AsyncIterable<Row[]>;
  insert(table: string, rows: readonly Row[]): Promise<void>;
  /** Takes out the few rows that every new database has of its own. */
  clear(): Promise<void>;
  /** Makes what was inserted durable. */
  keep(): Promise<void>;
}

/** The database can't be an end of this copy, for a reason that a person can do something about. */
export class TransferError extends Error {
  override readonly name = "TransferError";
}

/** Tables whose rows a new database has of its own. */
export const OWN_TABLES: readonly string[] = ["server_meta"];

/**
 * Opens a database to read all of it, as it stands now.
 *
 * @param url `sqlite:PATH`, or PostgreSQL's
 * @throws TransferError, DatabaseInUseError, NewerDatabaseError
 */
export async function openTransfer(url: string, role: "source" | "target"): Promise<TransferEnd> {
  const path = /^sqlite:(?:\/\/)?(.+)$/.exec(url)?.[1];
  if (path !== undefined) {
    const { openSqliteTransfer } = await import("./sqlite/transfer.ts");
    return openSqliteTransfer(path, role);
  }
  const { openPostgresTransfer } = await import("./postgres/transfer.ts");
  return openPostgresTransfer(url, role);
}
