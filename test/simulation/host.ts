/** The server under the simulation: in this process, or as a child that can be killed. Many seeds share one. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startChildServer } from "../child.ts";
import type { Config } from "../../src/config.ts";
import { startTestServer, type DatabaseKind } from "../harness.ts";
import { databaseSettings } from "../pgbouncer.ts";
import { createTestDatabase } from "../postgres.ts";
import type { Weather } from "./schedule.ts";

const JWT_SECRET = "0123456789abcdefghijklmnopqrstuvwxyz-simulation";

export interface Host extends AsyncDisposable {
  /** Where to connect now: a server that was killed comes back elsewhere, and there may be two. */
  readonly url: () => string;
  /** Ends the server as the weather has it, and starts it again. One at a time, whoever asks. */
  readonly restart: () => Promise<void>;
}

/**
 * @param env for the server, such as a small HISTORY_LIMIT
 */
export async function startHost(weather: Weather, database: DatabaseKind, env: Record<string, string>): Promise<Host> {
  return weather === "kills" ? startKilledHost(database, env) : startRestartedHost(database, env);
}

/** On PostgreSQL there are two instances: connections go to one and the other in turn, and so do restarts. */
async function startRestartedHost(database: DatabaseKind, env: Record<string, string>): Promise<Host> {
  const options = {
    env: { ...env, JWT_SECRET, LOG_LEVEL: "warn" },
    // A connection that was broken in between does not answer a goodbye: no need to wait for it.
    adjust: (config: Config) => ({ ...config, relay: { ...config.relay, closeGraceMs: 50 } }),
  };
  const first = await startTestServer({ ...options, database });
  const servers = [first];
  if (first.databaseUrl !== undefined) {
    servers.unshift(await startTestServer({ ...options, databaseUrl: first.databaseUrl }));
  }
  const inTurn = () => {
    let turn = 0;
    return () => servers[turn++ % servers.length] ?? first;
  };
  const [nextToServe, nextToRestart] = [inTurn(), inTurn()];
  return {
    url: () => nextToServe().url,
    restart: oneAtATime(() => nextToRestart().restart()),
    async [Symbol.asyncDispose]() {
      for (const server of servers) await server[Symbol.asyncDispose]();
    },
  };
}

async function startKilledHost(database: DatabaseKind, env: Record<string, string>): Promise<Host> {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-simulation-"));
  const testDatabase = database === "postgres" ? await createTestDatabase() : undefined;
  const allEnv = { DATA_DIR: dataDir, ...(await databaseSettings(testDatabase?.url)), ...env };
  let child = await startChildServer(allEnv);
  return {
    url: () => child.url,
    restart: oneAtATime(async () => {
      await child.kill("SIGKILL");
      child = await startChildServer(allEnv);
    }),
    async [Symbol.asyncDispose]() {
      await child.kill("SIGTERM");
      await testDatabase?.drop();
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

/** Whoever calls waits for those who called before. */
export function oneAtATime<T>(act: () => Promise<T>): () => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return () => {
    const mine = last.then(act, act);
    last = mine;
    return mine;
  };
}
