/** What PostgreSQL does without us: pgbench (Debian's package `postgresql-15`) with an upsert of the same meaning. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { median } from "./measure.ts";

const PGBENCH = Bun.which("pgbench");
const ACCOUNTS = 100;
const SECONDS = 5;

/** Keys as in schema.ts; the counter and the row change together, as [W9] asks. */
const TABLES = `
  DROP TABLE IF EXISTS limit_slots, limit_accounts;
  CREATE TABLE limit_accounts (id int PRIMARY KEY, seq bigint NOT NULL);
  CREATE TABLE limit_slots (
    user_id int, slot_number int, encrypted_blob bytea NOT NULL, timestamp bigint NOT NULL, seq bigint NOT NULL,
    PRIMARY KEY (user_id, slot_number));
  INSERT INTO limit_accounts SELECT i, 0 FROM generate_series(0, ${ACCOUNTS - 1}) AS i;`;

const upsert = (which: string) => `
  WITH counted AS (UPDATE limit_accounts SET seq = seq + 1 WHERE ${which} RETURNING id, seq)
  INSERT INTO limit_slots SELECT id, 1, decode(:blob, 'base64'), seq, seq FROM counted
  ON CONFLICT (user_id, slot_number) DO UPDATE
  SET encrypted_blob = excluded.encrypted_blob, timestamp = excluded.timestamp, seq = excluded.seq
  WHERE limit_slots.timestamp < excluded.timestamp
  RETURNING user_id, seq;`;

/** Writes a second: of 100 clients, each with a write a statement; and of one client, with 100 in each. */
export interface PgbenchRates {
  oneByOne: number;
  batches: number;
}

/** @returns medians; undefined where pgbench is not installed */
export async function pgbench(databaseUrl: string, rounds: number): Promise<PgbenchRates | undefined> {
  if (PGBENCH === null) return undefined;
  await using sql = new Bun.SQL(databaseUrl, { max: 1 });
  await sql.unsafe(TABLES);
  const folder = await mkdtemp(join(tmpdir(), "clipslot-pgbench-"));
  try {
    const [oneByOne, batches]: [number[], number[]] = [[], []];
    for (let count = 0; count < rounds; count += 1) {
      oneByOne.push(await run(join(folder, "one.sql"), upsert("id = :client_id"), databaseUrl, ACCOUNTS));
      batches.push(ACCOUNTS * (await run(join(folder, "batch.sql"), upsert("true"), databaseUrl, 1)));
    }
    return { oneByOne: median(oneByOne), batches: median(batches) };
  } finally {
    await rm(folder, { recursive: true });
    await sql.unsafe("DROP TABLE limit_slots, limit_accounts");
  }
}

/** @returns statements a second */
async function run(file: string, statement: string, databaseUrl: string, clients: number): Promise<number> {
  await Bun.write(file, statement);
  const blob = Buffer.from(crypto.getRandomValues(new Uint8Array(1_024))).toString("base64");
  const options = ["--no-vacuum", "--protocol=prepared", `--client=${clients}`, `--time=${SECONDS}`];
  const output = await Bun.$`${PGBENCH} ${options} --file=${file} --define=blob=${blob} ${databaseUrl}`.quiet().text();
  const rate = /^tps = ([\d.]+)/m.exec(output)?.[1];
  if (rate === undefined) throw new Error(`pgbench did not say how fast it was:\n${output}`);
  return Number(rate);
}
