/** Durable relays: how many a second, and how long one takes. */
import type { Scenario } from "./bench.ts";
import { median, round, type Row } from "./measure.ts";
import { pgbench } from "./pgbench.ts";
import { postgresLimit } from "./postgres-limit.ts";
import { relayLoad, type RelayResult } from "./relay-load.ts";
import { clipslotOnPostgres, clipslotOnSqlite, yardstick, type Subject } from "./subjects.ts";

const SIZES = [100, 1_024, 16_384, 262_144];
const PAIRS = [1, 10, 100, 1_000];

const CASES = [
  ...PAIRS.map((pairs) => ({ pairs, blobBytes: 1_024, protocol: 2 as const })),
  { pairs: 100, blobBytes: 1_024, protocol: 1 as const },
  ...SIZES.filter((size) => size !== 1_024).map((blobBytes) => ({ pairs: 100, blobBytes, protocol: 2 as const })),
];

export const relay: Scenario = {
  title: "Durable relays a second on SQLite, closed loop, against a bare relay that stores nothing",
  async run(rounds) {
    await using server = await clipslotOnSqlite();
    return await againstBare(server, rounds);
  },
};

export const relayOnPostgres: Scenario = {
  title: "Durable relays a second on PostgreSQL, closed loop, against a bare relay that stores nothing",
  async run(rounds) {
    await using servers = await clipslotOnPostgres();
    const [server] = servers.subjects;
    if (server === undefined) throw new Error("the instance did not start");
    return await againstBare(server, rounds);
  },
};

async function againstBare(server: Subject, rounds: number) {
  await using bare = await yardstick();
  const rows: Row[] = [];
  for (const { pairs, blobBytes, protocol } of CASES) {
    const [ours, theirs] = await alternate(rounds, [server, bare], ({ url, accounts }) =>
      relayLoad({ urls: [url, url], accounts, protocol, pairs, blobBytes, rate: 0 }),
    );
    rows.push(compare(`${pairs} pairs, ${bytes(blobBytes)}, protocol ${protocol}`, ours, theirs));
  }
  return { rows, chart: { label: "case", value: "of the bare relay", full: 1 } };
}

export const instances: Scenario = {
  title: "Durable relays a second on PostgreSQL, one and two instances, 100 pairs, 1 KiB",
  async run(rounds) {
    await using bare = await yardstick();
    await using servers = await clipslotOnPostgres(2);
    const { within: one, across } = oneAndTwo(servers.subjects);
    const load = (urls: [string, string], accounts: "clipslot" | "none") =>
      relayLoad({ urls, accounts, protocol: 2, pairs: 100, blobBytes: 1_024, rate: 0 });
    const yard = { ...bare, name: "bare", urls: [bare.url, bare.url] as [string, string] };
    const results = await alternate(rounds, [one, across, yard], ({ urls, accounts }) => load(urls, accounts));
    const ownBatches = await postgresLimit(servers.databaseUrl, rounds);
    const plain = await pgbench(servers.databaseUrl, rounds);
    const limits = [
      { case: "the same batches straight into the database", column: "of its batches", rate: ownBatches },
      { case: "pgbench, 100 writes a statement, 1 client", column: "of pgbench's batches", rate: plain?.batches },
      {
        case: "pgbench, 1 write a statement, 100 clients",
        column: "of pgbench's single writes",
        rate: plain?.oneByOne,
      },
    ].map((limit) => ({ ...limit, rate: limit.rate ?? Number.NaN }));
    const theirs = results[2] ?? [];
    const rows: Row[] = [one, across].map(({ name }, index) => {
      const compared = compare(name, results[index] ?? [], theirs);
      const shares = limits.map(({ column, rate }) => [column, round(Number(compared["relays/s"]) / rate, 2)]);
      return { ...compared, ...Object.fromEntries(shares) };
    });
    for (const limit of limits) rows.push({ case: limit.case, "relays/s": round(limit.rate) });
    return { rows };
  },
};

export const roundTrip: Scenario = {
  title: "One pair's round trip, SQLite",
  async run(rounds) {
    await using bare = await yardstick();
    await using server = await clipslotOnSqlite();
    const [ours, theirs] = await alternate(rounds, [server, bare], (subject) =>
      relayLoad({
        urls: [subject.url, subject.url],
        accounts: subject.accounts,
        protocol: 2,
        pairs: 1,
        blobBytes: 1_024,
        rate: 0,
      }),
    );
    const mine = median((ours ?? []).map(({ p50 }) => p50));
    const yard = median((theirs ?? []).map(({ p50 }) => p50));
    return {
      rows: [{ "times the bare": round(mine / yard, 2), "p50 ms": round(mine, 3), "bare p50 ms": round(yard, 3) }],
    };
  },
};

export const latency: Scenario = {
  title: "Relay latency at a fixed rate, open loop, SQLite, 100 pairs, 1 KiB (corrected for coordinated omission)",
  async run(rounds) {
    await using server = await clipslotOnSqlite();
    const rows: Row[] = [];
    for (const rate of [100, 1_000, 5_000]) {
      const [results] = await alternate(rounds, [server], ({ url, accounts }) =>
        relayLoad({ urls: [url, url], accounts, protocol: 2, pairs: 100, blobBytes: 1_024, rate }),
      );
      const of = (read: (result: RelayResult) => number) => round(median((results ?? []).map(read)), 2);
      rows.push({
        "messages/s": rate,
        "p50 ms": of(({ p50 }) => p50),
        "p99 ms": of(({ p99 }) => p99),
        "p99.9 ms": of(({ p999 }) => p999),
        "arrived/s": of(({ relaysPerSecond }) => relaysPerSecond),
      });
    }
    return { rows };
  },
};

export const latencyOnPostgres: Scenario = {
  title: "Relay latency at a fixed rate, open loop, PostgreSQL, 100 pairs, 1 KiB: within one instance, across two",
  async run(rounds) {
    await using servers = await clipslotOnPostgres(2);
    const { within, across } = oneAndTwo(servers.subjects);
    const rows: Row[] = [];
    for (const rate of [200, 1_000]) {
      const results = await alternate(rounds, [within, across], ({ urls, accounts }) =>
        relayLoad({ urls, accounts, protocol: 2, pairs: 100, blobBytes: 1_024, rate }),
      );
      const of = (index: number, read: (result: RelayResult) => number) => median((results[index] ?? []).map(read));
      for (const [index, { name }] of [within, across].entries()) {
        rows.push({
          case: `${rate} messages/s, ${name}`,
          "p50, times one instance's": round(of(index, ({ p50 }) => p50) / of(0, ({ p50 }) => p50), 2),
          "p99, times one instance's": round(of(index, ({ p99 }) => p99) / of(0, ({ p99 }) => p99), 2),
          "p50 ms": round(
            of(index, ({ p50 }) => p50),
            2,
          ),
          "p99 ms": round(
            of(index, ({ p99 }) => p99),
            2,
          ),
          "arrived/s": round(of(index, ({ relaysPerSecond }) => relaysPerSecond)),
        });
      }
    }
    return { rows };
  },
};

/** Pairs whose devices are on one instance, and pairs with one on each. */
function oneAndTwo([first, second]: readonly Subject[]) {
  if (first === undefined || second === undefined) throw new Error("an instance did not start");
  return {
    within: { ...first, name: "one instance", urls: [first.url, first.url] as [string, string] },
    across: { ...first, name: "across two instances", urls: [first.url, second.url] as [string, string] },
  };
}

/** Every round measures each subject once, in turn. */
async function alternate<S extends Pick<Subject, "name">>(
  rounds: number,
  subjects: readonly S[],
  measure: (subject: S) => Promise<RelayResult>,
): Promise<RelayResult[][]> {
  const results: RelayResult[][] = subjects.map(() => []);
  for (let count = 0; count < rounds; count += 1) {
    for (const [index, subject] of subjects.entries()) results[index]?.push(await measure(subject));
  }
  return results;
}

function compare(name: string, ours: readonly RelayResult[] = [], theirs: readonly RelayResult[] = []): Row {
  const rate = (results: readonly RelayResult[]) => median(results.map(({ relaysPerSecond }) => relaysPerSecond));
  const load = median(ours.map(({ loadProcessor }) => loadProcessor));
  return {
    case: name,
    "of the bare relay": round(rate(ours) / rate(theirs), 2),
    "relays/s": round(rate(ours)),
    "bare relays/s": round(rate(theirs)),
    "p99 ms": round(median(ours.map(({ p99 }) => p99)), 2),
    bottleneck: load > 0.9 ? "the load" : "the server",
  };
}

const bytes = (count: number) => (count < 1_024 ? `${count} B` : `${count / 1_024} KiB`);
