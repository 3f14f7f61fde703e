/**
 * Random protocol traffic from a seed, REST and socket, right and mutated, against a server in this process.
 *
 *   bun test/fuzz.ts --minutes 10 --seed 1 --database sqlite
 *
 * Whatever comes: an answer of the contract, no fault of ours in the log, and a server that is as well and as small
 * afterwards as before. What is sent depends on the seed alone; when the server answers does not.
 */
import { heapStats } from "bun:jsc";
import { parseArgs } from "node:util";
import {
  createAccount,
  createDevice,
  startTestServer,
  TestSocket,
  type DatabaseKind,
  type TestServer,
} from "./harness.ts";
import { createMutator, createRandom, createTraffic, type Known, type Random } from "./fuzz-traffic.ts";

const ACCOUNTS = 4;
const WORKERS = 4;
const READINGS = 5;
/** With nothing to do, the allocator gives back what it holds in reserve. */
const ALLOCATOR_MS = 2_000;
/** What a request may be answered with; anything else is a fault. */
const STATUSES = new Set([200, 201, 204, 400, 401, 403, 404, 405, 409, 410, 413, 426, 429, 431]);

export interface FuzzOptions {
  milliseconds: number;
  seed: number;
  database: DatabaseKind;
  /** Told of each reading. */
  onReading?: (memory: Memory) => void;
}

/** In MiB, after a collection, with no traffic: of the whole process with its traffic, and of what JavaScript holds. */
interface Memory {
  resident: number;
  heap: number;
}

export interface FuzzReport {
  requests: number;
  messages: number;
  statuses: Record<string, number>;
  /** After each fifth of the time. */
  memory: Memory[];
  faults: string[];
}

export async function fuzz({ milliseconds, seed, database, onReading }: FuzzOptions): Promise<FuzzReport> {
  // Histories and caches are kept short and are soon full, so that memory that grows is memory that leaks.
  await using server = await startTestServer({
    database,
    env: { MAX_BLOB_BYTES: "16384", HISTORY_LIMIT: "50" },
    adjust: (config) => ({ ...config, auth: { ...config.auth, tokenStateCacheEntries: 200, devicesPerAccount: 20 } }),
  });
  const report: FuzzReport = { requests: 0, messages: 0, statuses: {}, memory: [], faults: [] };
  const onFault = (error: unknown) => report.faults.push(`unhandled: ${String(error)}`);
  process.on("unhandledRejection", onFault);
  process.on("uncaughtException", onFault);
  const known: Known = { tokens: [], ids: [], emails: [], cursors: [], codes: [] };
  for (let index = 0; index < ACCOUNTS; index += 1) {
    const account = await createAccount(server, `fuzz${index}@example.org`, "fuzz password");
    const devices = [await createDevice(server, account), await createDevice(server, account)];
    known.emails.push(account.email);
    known.tokens.push(account.token, ...devices.map(({ token }) => token));
  }

  const draining = setInterval(() => drainLog(server, report), 100);
  const randoms = Array.from({ length: WORKERS }, (_, worker) => createRandom(seed * 1_000 + worker));
  while (report.memory.length < READINGS) {
    const end = performance.now() + milliseconds / READINGS;
    const isOver = () => performance.now() >= end;
    await Promise.all(
      randoms.map((random, worker) =>
        worker % 2 === 0
          ? fuzzRest(server, random, known, report, isOver)
          : fuzzSocket(server, random, known, report, isOver),
      ),
    );
    await readMemory();
  }
  clearInterval(draining);
  drainLog(server, report);

  // As well as before.
  const after = await createDevice(server, await createAccount(server));
  await server.json("GET", "/api/sync/slots", { token: after.token, status: 200 });
  await server.json("GET", "/readyz", { status: 200 });
  process.off("unhandledRejection", onFault);
  process.off("uncaughtException", onFault);
  return report;

  async function readMemory(): Promise<void> {
    Bun.gc(true);
    await Bun.sleep(ALLOCATOR_MS);
    const mebibytes = (bytes: number) => Math.round((bytes / 1024 / 1024) * 10) / 10;
    const memory = { resident: mebibytes(process.memoryUsage().rss), heap: mebibytes(heapStats().heapSize) };
    report.memory.push(memory);
    onReading?.(memory);
  }
}

async function fuzzRest(
  server: TestServer,
  random: Random,
  known: Known,
  report: FuzzReport,
  isOver: () => boolean,
): Promise<void> {
  const traffic = createTraffic(random, known);
  const mutate = createMutator(random);
  while (!isOver()) {
    const call = traffic.call();
    const body = call.body === undefined ? undefined : mutate(JSON.stringify(call.body));
    const path = mutate.path(call.path);
    const given = random.pick(known.tokens);
    const token = random.chance(0.9) ? given : mutate(given).replace(/[^ -~]/g, "");
    const options = { ...(body === undefined ? {} : { body }), headers: { Authorization: `Bearer ${token}` } };
    const response = await server.request(call.method, path, options);
    const text = await response.text();
    report.requests += 1;
    report.statuses[response.status] = (report.statuses[response.status] ?? 0) + 1;
    if (!STATUSES.has(response.status))
      report.faults.push(`${call.method} ${path} ${body}: ${response.status} ${text}`);
    if (/"stack"|\bat \w+ \(|SELECT |INSERT /.test(text)) report.faults.push(`${call.method} ${path} tells: ${text}`);
    traffic.learn(text);
    if (response.status === 401 && token === given) forgetToken(known, token);
    if (random.chance(0.02) || known.tokens.length < ACCOUNTS) await signIn(server, random.pick(known.emails), known);
  }
}

async function fuzzSocket(
  server: TestServer,
  random: Random,
  known: Known,
  report: FuzzReport,
  isOver: () => boolean,
): Promise<void> {
  const traffic = createTraffic(random, known);
  const mutate = createMutator(random);
  while (!isOver()) {
    const token = random.pick(known.tokens);
    const socket = await TestSocket.open(server, token, traffic.query()).catch(() => null);
    if (socket === null) {
      await Bun.sleep(1);
      continue;
    }
    const messages = random.below(60);
    for (let sent = 0; sent < messages && socket.isOpen && !isOver(); sent += 1) {
      const text = mutate(JSON.stringify(traffic.message()));
      if (random.chance(0.02)) socket.sendBytes(new TextEncoder().encode(text));
      else socket.send(text);
      report.messages += 1;
      if (random.chance(0.2)) await Bun.sleep(0);
    }
    if (random.chance(0.5) && socket.isOpen) await socket.settle().catch(() => {});
    if (random.chance(0.3)) socket.terminate();
    else await socket.close();
    await Bun.sleep(0);
  }
}

/** What was sent may have ended it. */
function forgetToken(known: Known, token: string): void {
  const index = known.tokens.indexOf(token);
  if (index !== -1 && known.tokens.length > 1) known.tokens.splice(index, 1);
}

/** Logs in again, or registers again, whatever became of the account. */
async function signIn(server: TestServer, email: string, known: Known): Promise<void> {
  const body = { email, password: "fuzz password" };
  const login = await server.request("POST", "/api/auth/login", { body });
  const answer = login.ok ? login : await server.request("POST", "/api/auth/register", { body });
  if (!answer.ok) return;
  const { token } = (await answer.json()) as { token: string };
  const device = { token, body: { name: "fuzz", device_type: "linux" } };
  const registered = await server.request("POST", "/api/auth/device", device);
  if (registered.ok) known.tokens.push(token, ((await registered.json()) as { token: string }).token);
  if (known.tokens.length > 40) known.tokens.splice(0, known.tokens.length - 40);
}

/** A fault of ours is a line of level error; lines are let go of, or they would be what grows. */
function drainLog(server: TestServer, report: FuzzReport): void {
  for (const line of server.logLines.splice(0)) {
    if (line.includes('"level":"error"')) report.faults.push(line);
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string", default: "10" },
      seed: { type: "string", default: String(Date.now() % 1_000_000) },
      database: { type: "string", default: "sqlite" },
    },
  });
  const database = values.database === "postgres" ? "postgres" : "sqlite";
  console.log(`seed ${values.seed}, ${values.minutes} minutes, ${database}`);
  const report = await fuzz({
    milliseconds: Number(values.minutes) * 60_000,
    seed: Number(values.seed),
    database,
    onReading: ({ resident, heap }) => console.log(`${resident} MiB, JavaScript ${heap} MiB`),
  });
  console.log(JSON.stringify({ ...report, faults: report.faults.slice(0, 20) }, undefined, 2));
  // Not by itself: a PostgreSQL of this process's own would keep it.
  process.exit(report.faults.length === 0 ? 0 : 1);
}
