/**
 * A stop ends in time while PostgreSQL answers nothing: its host is gone, and packets are dropped without a word.
 * Connections stay open, and nothing that is asked is ever answered.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { postgresBus } from "../src/bus/postgres.ts";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import { changes, listener } from "./bus-contract.ts";
import { startChildServer } from "./child.ts";
import {
  connect,
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  startTestServer,
  TestSocket,
  within,
} from "./harness.ts";
import { createTestDatabase } from "./postgres.ts";
import { startProxy, type Proxy } from "./proxy.ts";

const silent = createLogger({ level: "error", format: "json", write: () => {} });

const UNANSWERED_WRITES = 100;
const JWT_SECRET = "a-stopping-server-0123456789-abcdefghij";
/** Of src/storage/migrate.ts. */
const MIGRATION_LOCK = "7164782637466742644";

test("a bus whose NOTIFY is never answered closes", async () => {
  await using database = await createTestDatabase();
  await using proxy = await startProxyTo(database.url);
  const config = loadConfig({});
  const bus = postgresBus({ url: proxy.databaseUrl, config, log: silent });
  const { gap } = await listener(bus);
  await gap(1);
  await using other = await listener(postgresBus({ url: database.url, config, log: silent }));
  const heard = changes(crypto.randomUUID(), 1);
  bus.tell(heard);
  expect(await other.next()).toEqual(heard); // its connection for NOTIFY stands
  proxy.blackHole();
  bus.tell(changes(crypto.randomUUID(), 2));
  await within(bus.close(), "the bus to close", config.bus.notifyTimeoutMs + 5_000);
}, 30_000);

test("SIGTERM while the database answers nothing: exit code 0, in time, and sockets hear a goodbye", async () => {
  await using database = await createTestDatabase();
  await using proxy = await startProxyTo(database.url);
  const server = await startChildServer({ DATABASE_URL: proxy.databaseUrl, JWT_SECRET });
  try {
    const account = await createAccount(connect(server.url));
    const { token } = await createDevice(connect(server.url), account);
    const socket = await TestSocket.open(server, token, "&protocol=2");
    await socket.sendForAnswer(historyPush(randomBlob()));
    proxy.blackHole();
    for (let count = 0; count < UNANSWERED_WRITES; count += 1) socket.send(historyPush(randomBlob()));
    await socket.settle(); // the server has them all
    // Waits for 10 s, as Docker does.
    expect(await server.kill("SIGTERM")).toBe(0);
    expect((await socket.closed).code).toBe(1012);
  } finally {
    await server.kill("SIGKILL");
  }
}, 60_000);

test("a socket that opens while the server stops hears the goodbye, too", async () => {
  await using database = await createTestDatabase();
  await using sql = new Bun.SQL(database.url, { max: 2 });
  await using server = await startTestServer({ databaseUrl: database.url });
  const account = await createAccount(server);
  const early = await createDevice(server, account);
  const late = await createDevice(server, account);
  const there = await TestSocket.open(server, early.token);
  let stopped: Promise<void> | undefined;
  let opening: Promise<TestSocket> | undefined;
  await sql.begin(async (transaction) => {
    await transaction`LOCK TABLE devices IN ACCESS EXCLUSIVE MODE`;
    opening = TestSocket.open(server, late.token);
    const asking = () => sql`SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = database
      WHERE datname = current_database() AND NOT granted`;
    while ((await asking()).length === 0);
    stopped = server.stop();
    expect((await there.closed).code).toBe(1012);
  });
  expect((await (await opening)?.closed)?.code).toBe(1012);
  await stopped;
}, 30_000);

test("SIGTERM while it waits for another's migration, before it serves anybody: exit code 0", async () => {
  await using database = await createTestDatabase();
  await using sql = new Bun.SQL(database.url, { max: 2 });
  await sql.begin(async (transaction) => {
    await transaction`SELECT pg_advisory_xact_lock(${MIGRATION_LOCK})`;
    const server = Bun.spawn([process.execPath, join(import.meta.dir, "../src/main.ts"), "serve"], {
      env: { PATH: process.env["PATH"], PORT: "0", DATABASE_URL: database.url, JWT_SECRET },
      stdio: ["ignore", "ignore", "inherit"],
    });
    try {
      const waiting = () => sql`SELECT 1 FROM pg_locks JOIN pg_database ON oid = database
        WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted`;
      while ((await waiting()).length === 0);
      server.kill("SIGTERM");
      expect(await within(server.exited, "the server to end")).toBe(0);
    } finally {
      server.kill("SIGKILL");
    }
  });
}, 30_000);

async function startProxyTo(url: string): Promise<Proxy & { databaseUrl: string }> {
  const proxy = await startProxy(() => Number(new URL(url).port));
  const databaseUrl = new URL(url);
  databaseUrl.hostname = "127.0.0.1";
  databaseUrl.port = new URL(proxy.url).port;
  return Object.assign(proxy, { databaseUrl: databaseUrl.href });
}
