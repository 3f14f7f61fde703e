/**
 * PgBouncer in transaction mode (Debian's package `pgbouncer`). `TEST_POOLER=pgbouncer bun run test [file …]` puts one
 * before every PostgreSQL that a tested server uses.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { unprivilegedUser } from "./postgres.ts";

/** Of util-linux: by it the pooler ends with us, however we end. */
const SETPRIV = Bun.which("setpriv");
/** Where Debian installs it is not on everybody's path. Null: it is not installed. */
export const PGBOUNCER = SETPRIV && Bun.which("pgbouncer", { PATH: `${process.env["PATH"]}:/usr/sbin` });

/** Few, so that clients have to share them. */
const SERVER_CONNECTIONS = 4;
// As in postgres.ts: below the range of outgoing connections.
const FIRST_PORT = 12_000;
const PORTS = 3_000;
const PORTS_TRIED = 20;

export interface Pooler extends AsyncDisposable {
  /** The address of this database through the pooler. */
  through(databaseUrl: string): string;
  stop(): Promise<void>;
  /** Starts it again on the same port. */
  restart(): Promise<void>;
}

/** Starts a pooler before all databases of the PostgreSQL at this address; it logs in there as the address says. */
export async function startPgbouncer(databaseUrl: string): Promise<Pooler> {
  let port = 0;
  let child: Bun.Subprocess | undefined;
  for (let tries = 0; child === undefined && tries < PORTS_TRIED; tries += 1) {
    port = FIRST_PORT + Math.floor(Math.random() * PORTS);
    child = await launch(settings(new URL(databaseUrl), port));
  }
  if (child === undefined) throw new Error("pgbouncer did not start");
  const stop = async () => {
    child?.kill();
    await child?.exited;
  };
  return {
    through(url) {
      const address = new URL(url);
      address.port = String(port);
      return address.href;
    },
    stop,
    async restart() {
      await stop();
      child = await launch(settings(new URL(databaseUrl), port));
      if (child === undefined) throw new Error("pgbouncer did not start again");
    },
    [Symbol.asyncDispose]: stop,
  };
}

/** README.md's file, but for who may log in. */
const settings = ({ hostname, port, username, password }: URL, poolerPort: number) => `
[databases]
* = host=${hostname} port=${port} user=${username} password=${password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${poolerPort}
unix_socket_dir =
auth_type = any
pool_mode = transaction
server_login_retry = 1
default_pool_size = ${SERVER_CONNECTIONS}
max_client_conn = 1000
`;

/** @returns undefined when it ended instead of becoming ready, as on a port that is taken */
async function launch(text: string): Promise<Bun.Subprocess | undefined> {
  if (SETPRIV === null || PGBOUNCER === null) throw new Error("pgbouncer or setpriv is not installed");
  const user = await unprivilegedUser();
  const folder = await mkdtemp(join(user ? "/tmp" : tmpdir(), "clipslot-pgbouncer-"));
  try {
    const file = join(folder, "pgbouncer.ini");
    await writeFile(file, text, { mode: 0o600 });
    if (user) await Bun.$`chown -R ${user.uid}:${user.gid} ${folder}`.quiet();
    const command = [SETPRIV, "--pdeathsig=KILL", PGBOUNCER, file];
    const child = Bun.spawn(command, { ...user, cwd: "/", stdio: ["ignore", "ignore", "pipe"] });
    child.unref();
    const ready = Promise.withResolvers<true>();
    void readLog(child.stderr, () => ready.resolve(true));
    return (await Promise.race([ready.promise, child.exited.then(() => false)])) ? child : undefined;
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Reads to the end, so that the pipe never fills. */
async function readLog(stream: ReadableStream<Uint8Array>, onReady: () => void): Promise<void> {
  const decoder = new TextDecoder();
  let log = "";
  for await (const chunk of stream) {
    if (log.includes("process up")) continue;
    log += decoder.decode(chunk, { stream: true });
    if (log.includes("process up")) onReady();
  }
}

const poolers = new Map<string, Promise<Pooler>>();

/** The settings by which a server reaches a database: through a pooler when TEST_POOLER says so. */
export async function databaseSettings(databaseUrl: string | undefined): Promise<Record<string, string>> {
  if (databaseUrl === undefined) return {};
  if (process.env["TEST_POOLER"] !== "pgbouncer") return { DATABASE_URL: databaseUrl };
  const { host } = new URL(databaseUrl);
  const pooler = poolers.get(host) ?? startPgbouncer(databaseUrl);
  poolers.set(host, pooler);
  return { DATABASE_URL: (await pooler).through(databaseUrl), DATABASE_DIRECT_URL: databaseUrl };
}
