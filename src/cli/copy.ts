/** Moves a whole server from SQLite to PostgreSQL, or back. */
import { openTransfer, OWN_TABLES, TransferError, type Row, type TransferEnd } from "../storage/transfer.ts";
import { UsageError, type Command, type CommandIo } from "./command.ts";
import { percent } from "./progress.ts";
import { readWords } from "./words.ts";

/** What a table held when it was read: how many rows, and the SHA-256 of them all in order. */
interface Sum {
  rows: number;
  digest: string;
}

export const command: Command = {
  summary: "Copies a whole server from SQLite to PostgreSQL, or back.",
  usage: `Usage: clipslot-server copy --from URL --to URL

A URL is sqlite:PATH (of a data folder, or of a file that ends in .db) or postgres://… (of the server itself, not of a
pooler). Both servers must be stopped, and the target must hold nothing. Everything is copied: accounts, devices, slots, history, what
was deleted, and the epoch, so that clients go on where they were. At the end the target is read back and compared with
the source, row by row; if anything differs or fails, the target is left as it was.

Then start the server on the new database with the same JWT_SECRET, or the same jwt-secret in DATA_DIR: without it
everybody has to log in again.`,
  async run(args, io) {
    const { options } = readWords(args, [], { from: { type: "string" }, to: { type: "string" } });
    const urls = { from: databaseUrl(options.from, "--from"), to: databaseUrl(options.to, "--to") };
    await using source = await openTransfer(urls.from, "source");
    await using target = await openTransfer(urls.to, "target");
    await refuseNonEmpty(target);
    const copied = await copyTables(source, target, io);
    await verify(target, copied, io);
    await target.keep();
    for (const [table, { rows }] of copied) io.print(`${table.padEnd(20)} ${rows}`);
    io.print("Copied and verified.");
    return 0;
  },
};

function databaseUrl(url: string | undefined, option: string): string {
  if (url === undefined) throw new UsageError(`${option} is missing.`);
  if (/^(sqlite:.|postgres(ql)?:\/\/.)/.test(url)) return url;
  throw new UsageError(`${option} must be sqlite:PATH or postgres://…`);
}

async function refuseNonEmpty(target: TransferEnd): Promise<void> {
  for (const table of target.tables) {
    if (!OWN_TABLES.includes(table) && (await target.count(table)) > 0)
      throw new TransferError(
        `The target is not empty (${table} has rows): give it a new database. Nothing was changed.`,
      );
  }
}

async function copyTables(source: TransferEnd, target: TransferEnd, io: CommandIo): Promise<Map<string, Sum>> {
  await target.clear();
  const sums = new Map<string, Sum>();
  for (const table of source.tables) {
    if (String(source.columns(table)) !== String(target.columns(table)))
      throw new Error(`the two databases differ in the columns of ${table}`);
    const total = await source.count(table);
    const sum = createSum();
    for await (const rows of source.rows(table)) {
      await target.insert(table, rows);
      sum.add(rows);
      io.progress.at(`Copying ${table}: ${percent(sum.rows, total)} of ${total} rows`);
    }
    sums.set(table, sum.finish());
  }
  io.progress.done();
  return sums;
}

/** Reads back what the target holds, and compares. */
async function verify(target: TransferEnd, copied: ReadonlyMap<string, Sum>, io: CommandIo): Promise<void> {
  for (const [table, expected] of copied) {
    const sum = createSum();
    for await (const rows of target.rows(table)) {
      sum.add(rows);
      io.progress.at(`Verifying ${table}: ${percent(sum.rows, expected.rows)} of ${expected.rows} rows`);
    }
    const found = sum.finish();
    if (found.rows !== expected.rows || found.digest !== expected.digest)
      throw new TransferError(
        `${table} differs: ${expected.rows} rows were read and ${found.rows} stand in the target${found.rows === expected.rows ? ", with other content" : ""}. Nothing was changed.`,
      );
  }
  io.progress.done();
}

function createSum() {
  const hasher = new Bun.CryptoHasher("sha256");
  let count = 0;
  return {
    get rows() {
      return count;
    },
    add(rows: readonly Row[]) {
      count += rows.length;
      for (const row of rows) {
        // Lengths stand before bytes, so that no two rows have the same text.
        hasher.update(
          JSON.stringify(row.map((value) => (value instanceof Uint8Array ? { bytes: value.length } : value))),
        );
        for (const value of row) if (value instanceof Uint8Array) hasher.update(value);
      }
    },
    finish: (): Sum => ({ rows: count, digest: hasher.digest("hex") }),
  };
}
