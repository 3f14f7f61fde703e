/**
 * PostgreSQL goes away in every way it can: the server stays up, acknowledges nothing that is not durable, keeps its
 * sockets, and serves again by itself.
 */
import { expect, test } from "bun:test";
import { startServer } from "../src/cli/serve.ts";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import {
  connect,
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  startTestServer,
  TestSocket,
  within,
  type TestServer,
} from "./harness.ts";
import { startPostgres, type PostgresServer } from "./postgres.ts";

/** The promise: it serves again so soon after the database does. */
const BACK_WITHIN_MS = 5_000;

const OUTAGE = "the database could not answer";

interface Outage {
  name: string;
  /** Takes the database away; returns what brings it back. */
  begin: (postgres: PostgresServer) => Promise<() => Promise<void> | void>;
  /** Some outages are over before anyone notices. */
  lasts: boolean;
}

const outages: Outage[] = [
  {
    name: "stopped with `immediate` and started again",
    lasts: true,
    begin: async (postgres) => {
      await postgres.stop("immediate");
      return () => postgres.restart();
    },
  },
  {
    name: "killed with -9 and started again",
    lasts: true,
    begin: async (postgres) => {
      await postgres.kill("SIGKILL");
      return () => postgres.restart();
    },
  },
  {
    name: "stopped by SIGSTOP for longer than any deadline",
    lasts: true,
    begin: async (postgres) => {
      await postgres.freeze();
      return () => postgres.thaw();
    },
  },
  {
    name: "with every connection terminated",
    lasts: false,
    begin: async (postgres) => {
      await using sql = new Bun.SQL(postgres.url, { max: 1 });
      await sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'`;
      return () => {};
    },
  },
];

test.each(outages)(
  "[W1] PostgreSQL $name: nothing acknowledged is lost, nothing is missed, no restart",
  async ({ begin, lasts }) => {
    await using postgres = await startPostgres({ fsync: true });
    await using server = await startTestServer({
      database: "postgres",
      databaseUrl: postgres.url,
      env: { DATABASE_TIMEOUT_SECONDS: "1" },
    });
    const account = await createAccount(server);
    const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
    const reader = await TestSocket.open(server, second.token, "&protocol=2");
    const burst = startBurst(await TestSocket.open(server, first.token, "&protocol=2"));
    await burst.acknowledged(50);

    const end = await begin(postgres);
    if (lasts) {
      await burst.refused();
      const ready = await server.request("GET", "/readyz");
      expect(ready.status).toBe(503);
      for (const path of ["/api/sync/slots", "/api/sync/history?limit=1000"]) {
        const answer = await server.request("GET", path, { token: account.token });
        expect([path, answer.status]).toEqual([path, 503]);
        expect(answer.headers.get("Retry-After")).toMatch(/^\d+$/);
      }
      expect((await server.request("GET", "/healthz")).status).toBe(200);
      const told = server.logLines.map((line) => JSON.parse(line)).filter(({ message }) => message === OUTAGE);
      expect(told[0]).toMatchObject({ level: "warn", code: "unavailable", error: expect.stringMatching(/ < \w+: ./) });
      const seconds = told.map(({ time }) => Date.parse(time));
      for (const [index, at] of seconds.slice(1).entries()) expect(at - (seconds[index] ?? 0)).toBeGreaterThan(900);
    }
    await end();
    await within(readyAgain(server), "the server to serve again", BACK_WITHIN_MS);
    await burst.acknowledged(burst.count + 50);
    const written = await burst.stop();

    const seen = new Set<string>();
    while ([...written].some((id) => !seen.has(id))) seen.add((await reader.nextOf("history_new"))["id"]);
    const seqs = reader.received.filter(({ type }) => type === "history_new").map((message) => Number(message["seq"]));
    expect(seqs).toEqual(seqs.toSorted((left, right) => left - right));
    expect(new Set(seqs).size).toBe(seqs.length);
  },
  60_000,
);

test("started before its database, the server waits for it and says so", async () => {
  await using postgres = await startPostgres({ fsync: true });
  await postgres.stop("fast");
  const lines: string[] = [];
  const log = createLogger({ level: "info", format: "json", write: (line) => lines.push(line) });
  const waited = Promise.withResolvers<void>();
  const watched = { ...log, warn: (message: string) => message.includes("waiting") && waited.resolve() };
  const starting = startServer(
    loadConfig({ PORT: "0", DATABASE_URL: postgres.url, JWT_SECRET: "an-instance-0123456789-abcdefghij" }),
    watched,
  );
  await within(waited.promise, "the server to say that it waits");
  await postgres.restart();
  const server = await within(starting, "the server to start");
  try {
    expect((await connect(server.url.origin).request("GET", "/readyz")).status).toBe(200);
  } finally {
    await server.stop();
  }
}, 30_000);

/** Writes history with acknowledgements; a write that is refused is tried again, as PROTOCOL.md tells clients. */
function startBurst(socket: TestSocket) {
  const acknowledged = new Set<string>();
  const waiters: { reached: () => boolean; resolve: () => void }[] = [];
  let refusals = 0;
  let stopping = false;
  const until = (reached: () => boolean, what: string) =>
    within(
      new Promise<void>((resolve) => {
        waiters.push({ reached, resolve });
        notify();
      }),
      what,
      30_000,
    );
  const running = run();
  return {
    get count() {
      return acknowledged.size;
    },
    acknowledged: (count: number) => until(() => acknowledged.size >= count, `${count} acknowledgements`),
    /** Resolves when a write was refused because the database is away. */
    refused: () => until(() => refusals > 0, "a refusal"),
    async stop(): Promise<Set<string>> {
      stopping = true;
      await running;
      return acknowledged;
    },
  };

  async function run(): Promise<void> {
    while (!stopping) {
      const push = historyPush(randomBlob(200));
      for (;;) {
        const answer = await socket.sendForAnswer(push);
        if (answer.type === "ack") break;
        expect(answer).toMatchObject({ type: "error", code: "unavailable", retry_after_ms: expect.any(Number) });
        refusals += 1;
        notify();
      }
      acknowledged.add(push.id);
      notify();
    }
  }

  function notify(): void {
    for (const waiter of waiters) if (waiter.reached()) waiter.resolve();
  }
}

async function readyAgain(server: TestServer): Promise<void> {
  while ((await server.request("GET", "/readyz")).status !== 200);
}
