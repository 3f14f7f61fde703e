/**
 * `bun run bench [scenario …] [--rounds N]`: measures this server against its yardsticks, alternating in one run, and
 * prints medians with ratios first. What a machine does besides moves both sides alike; ratios are what counts.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { barChart } from "./chart.ts";
import { table, type Row } from "./measure.ts";
import { capacity } from "./scenario-capacity.ts";
import { growth } from "./scenario-growth.ts";
import { backup, copy } from "./scenario-operation.ts";
import { idle, start, storm } from "./scenario-sockets.ts";
import { instances, latency, latencyOnPostgres, relay, relayOnPostgres, roundTrip } from "./scenario-relay.ts";
import { rest } from "./scenario-rest.ts";

export interface Scenario {
  title: string;
  /** @returns rows of a table; a chart is drawn of the columns that it names */
  run(rounds: number): Promise<{ rows: Row[]; chart?: { label: string; value: string; full?: number } }>;
}

const SCENARIOS: Record<string, Scenario> = {
  relay,
  "relay-postgres": relayOnPostgres,
  instances,
  "round-trip": roundTrip,
  latency,
  "latency-postgres": latencyOnPostgres,
  rest,
  idle,
  storm,
  growth,
  capacity,
  backup,
  copy,
  start,
};

const DEFAULT_ROUNDS = 5;
const CHARTS = join(import.meta.dir, "charts");

const words = process.argv.slice(2);
const roundsAt = words.indexOf("--rounds");
const rounds = roundsAt === -1 ? DEFAULT_ROUNDS : Number(words.splice(roundsAt, 2)[1]);
const unknown = words.filter((word) => !(word in SCENARIOS));
if (unknown.length > 0 || !Number.isInteger(rounds) || rounds < 1) {
  console.error(`Usage: bun run bench [${Object.keys(SCENARIOS).join("|")} …] [--rounds N]`);
  process.exit(2);
}

for (const [name, scenario] of Object.entries(SCENARIOS)) {
  if (words.length > 0 && !words.includes(name)) continue;
  console.log(`\n## ${scenario.title}\n`);
  const { rows, chart } = await scenario.run(rounds);
  console.log(table(rows));
  if (chart === undefined) continue;
  mkdirSync(CHARTS, { recursive: true });
  const bars = rows.map((row) => ({ label: String(row[chart.label]), value: Number(row[chart.value]) }));
  await Bun.write(join(CHARTS, `${name}.svg`), barChart(scenario.title, bars, chart.full));
}
