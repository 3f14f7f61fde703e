/** What an operator does to a server with data: a backup beside a running one, and a move to the other database. */
import { Database } from "bun:sqlite";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadConfig } from "../../src/config.ts";
import { openStorage } from "../../src/storage/open.ts";
import type { Author, Storage, Write } from "../../src/storage/storage.ts";
import { FROM_SOURCE, startChildServer } from "../child.ts";
import { startPostgres } from "../postgres.ts";
import type { Scenario } from "./bench.ts";
import { median, percentile, round } from "./measure.ts";
import { now, startWriteLoad, type WriteLoadResult } from "./write-load.ts";

const ACCOUNTS = 200;
const ITEMS = 100_000;
const BLOB_BYTES = 1_800;
const WRITES_PER_SECOND = 1_000;
/** About as long as a backup, so that the longest waits have had equal chances. */
const QUIET_MS = 5_000;
const LIMITS = { historyItems: 1_000_000, accountBytes: 2 ** 40 };

interface Window {
  from: number;
  to: number;
}

export const backup: Scenario = {
  title: `A backup of a SQLite server with ${ITEMS.toLocaleString("en")} items, at ${WRITES_PER_SECOND.toLocaleString("en")} writes a second`,
  async run(rounds) {
    using folder = await filledFolder();
    const megabytes = statSync(join(folder.dataDir, "clipslot.db")).size / 1e6;
    const server = await startChildServer({ DATA_DIR: folder.dataDir, HISTORY_LIMIT: "1000000" });
    const load = await startWriteLoad(server.url, WRITES_PER_SECOND);
    const quiet: Window[] = [];
    const busy: Window[] = [];
    const copies: string[] = [];
    for (let count = 0; count < rounds; count += 1) {
      quiet.push(await during(() => Bun.sleep(QUIET_MS)));
      const copy = join(folder.path, `${count}.db`);
      busy.push(await during(() => runProgram(["backup", copy], { DATA_DIR: folder.dataDir })));
      copies.push(copy);
    }
    const result = await load.stop();
    await server.kill("SIGTERM");
    const acknowledged = (before: number) => result.writes.filter(({ at }) => at < before).map(({ id }) => id);
    const lacking = copies.map((copy, index) => lackingIn(copy, acknowledged(busy[index]?.from ?? Infinity)));
    return {
      rows: [
        { case: "without a backup", ...waits(result, quiet), "not in the copy": "", integrity_check: "" },
        {
          case: `during a backup of ${megabytes.toFixed(0)} MB`,
          ...waits(result, busy),
          "not in the copy": lacking.reduce((sum, count) => sum + count, 0),
          integrity_check: [...new Set(copies.map(integrityOf))].join(", "),
        },
      ],
    };
  },
};

export const copy: Scenario = {
  title: `copy of ${ACCOUNTS} accounts with ${ITEMS.toLocaleString("en")} history items to the other database`,
  async run(rounds) {
    using folder = await filledFolder();
    const runs: { seconds: number; megabytes: number }[][] = [[], []];
    let differences = 0;
    for (let count = 0; count < rounds; count += 1) {
      await using postgres = await startPostgres({ fsync: true });
      const back = join(folder.path, `back-${count}`);
      runs[0]?.push(await runProgram(["copy", "--from", `sqlite:${folder.dataDir}`, "--to", postgres.url]));
      runs[1]?.push(await runProgram(["copy", "--from", postgres.url, "--to", `sqlite:${back}`]));
      differences += differentRows(folder.dataDir, back);
      rmSync(back, { recursive: true });
    }
    const rows = ["SQLite → PostgreSQL", "PostgreSQL → SQLite"].map((name, index) => ({
      case: name,
      seconds: round(median((runs[index] ?? []).map(({ seconds }) => seconds)), 2),
      "peak memory MB": round(median((runs[index] ?? []).map(({ megabytes }) => megabytes)), 1),
      "rows that differ, there and back": index === 0 ? "" : differences,
    }));
    return { rows };
  },
};

/** The longest wait of each window; the worst counts, and the median tells what is usual. */
function waits({ writes, stalls }: WriteLoadResult, windows: readonly Window[]) {
  const within = <T extends { at: number }>(all: readonly T[]) =>
    windows.map(({ from, to }) => all.filter(({ at }) => at >= from && at < to));
  const each = within(writes).map((some) => some.map(({ waitedMs }) => waitedMs).toSorted((a, b) => a - b));
  const longest = each.map((sorted) => percentile(sorted, 1));
  const late = within(stalls).map((some) => some.reduce((most, { lateMs }) => Math.max(most, lateMs), 0));
  return {
    "longest wait ms, of all rounds": round(Math.max(...longest)),
    "median of the rounds' longest": round(median(longest)),
    "p99 ms": round(median(each.map((sorted) => percentile(sorted, 0.99))), 1),
    "the load's own longest stall ms": round(Math.max(...late)),
    seconds: round(median(windows.map(({ from, to }) => (to - from) / 1000)), 1),
  };
}

async function during(action: () => Promise<unknown>): Promise<Window> {
  const from = now();
  await action();
  return { from, to: now() };
}

/** Runs a command of the server to its end. */
async function runProgram(args: string[], env: Record<string, string> = {}) {
  const started = performance.now();
  const child = Bun.spawn([...FROM_SOURCE, ...args], {
    env: { PATH: process.env["PATH"] ?? "", ...env },
    stdio: ["ignore", "ignore", "inherit"],
  });
  if ((await child.exited) !== 0) throw new Error(`${args[0]} failed`);
  const seconds = (performance.now() - started) / 1000;
  return { seconds, megabytes: (child.resourceUsage()?.maxRSS ?? Number.NaN) / 2 ** 20 };
}

/** A folder with a database of many accounts. */
async function filledFolder() {
  const path = mkdtempSync(join(tmpdir(), "clipslot-operation-"));
  const dataDir = join(path, "data");
  const storage = await openStorage(loadConfig({ DATA_DIR: dataDir }));
  for (let account = 0; account < ACCOUNTS; account += 1) await fillAccount(storage, account);
  await storage.close();
  return { path, dataDir, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

async function fillAccount(storage: Storage, number: number): Promise<void> {
  const [userId, deviceId] = [crypto.randomUUID() as string, crypto.randomUUID() as string];
  await storage.createUser({ id: userId, email: `${number}@example.org`, passwordHash: "-", createdAt: 1 });
  const device = { userId, id: deviceId, name: "bench", deviceType: "bench", createdAt: 1, tokenExpiresAt: 2e12 };
  await storage.registerDevice(device, 50);
  const author = { userId, deviceId, tokenGeneration: 0 };
  const slots = [1, 2, 3].map((slotNumber): Write => ({
    kind: "slot",
    author,
    slotNumber,
    blob: randomBlob(),
    timestamp: 1,
    baseSeq: null,
  }));
  await storage.applyWrites(slots, LIMITS, Date.now());
  await storage.applyWrites(
    Array.from({ length: ITEMS / ACCOUNTS }, () => push(author)),
    LIMITS,
    Date.now(),
  );
}

function push(author: Author): Write {
  const [id, contentHash] = [crypto.randomUUID() as string, crypto.randomUUID() as string];
  return {
    kind: "history_push",
    author,
    id,
    contentHash,
    blob: randomBlob(),
    createdAt: Date.now(),
    expiresAt: null,
  };
}

const randomBlob = (): string => Buffer.from(crypto.getRandomValues(new Uint8Array(BLOB_BYTES))).toString("base64");

function lackingIn(path: string, ids: readonly string[]): number {
  using database = new Database(path, { readonly: true });
  const known = new Set(
    database
      .query<{ id: string }, []>("SELECT id FROM synced_history")
      .all()
      .map(({ id }) => id),
  );
  return ids.filter((id) => !known.has(id)).length;
}

function integrityOf(path: string): string {
  using database = new Database(path, { readonly: true });
  return database.query<{ integrity_check: string }, []>("PRAGMA integrity_check").get()?.integrity_check ?? "";
}

/** Rows of one database that are not, byte for byte, in the other, of all tables. */
function differentRows(leftDir: string, rightDir: string): number {
  using database = new Database(join(leftDir, "clipslot.db"));
  database.run("ATTACH ? AS other", [join(rightDir, "clipslot.db")]);
  const tables = database
    .query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    .all()
    .filter(({ name }) => name !== "schema_migrations");
  const count = (sql: string) => database.query<{ count: number }, []>(`SELECT count(*) AS count FROM (${sql})`).get();
  let different = 0;
  for (const { name } of tables) {
    different += count(`SELECT * FROM main.${name} EXCEPT SELECT * FROM other.${name}`)?.count ?? 1;
    different += count(`SELECT * FROM other.${name} EXCEPT SELECT * FROM main.${name}`)?.count ?? 1;
  }
  return different;
}
