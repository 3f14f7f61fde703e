/**
 * The front door for tests: a real server on a free port with fresh data, real sockets, and waiting for events.
 * Nothing here waits for a time, except to say that an event never came.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Bus } from "../src/bus/bus.ts";
import { startServer as start, type RunningServer } from "../src/cli/serve.ts";
import { loadConfig, type Config } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import { databaseSettings } from "./pgbouncer.ts";
import { createTestDatabase } from "./postgres.ts";

/** How long an expected event may take before a test fails. */
const DEADLINE_MS = 10_000;

export type DatabaseKind = "sqlite" | "postgres";

/** Every front-door test runs on both. */
export const DATABASES: readonly DatabaseKind[] = ["sqlite", "postgres"];

/** A server as a client sees it. */
export interface Connection {
  readonly url: string;
  /** A request; the body is sent as JSON when it is not a string. */
  request(method: string, path: string, options?: RequestOptions): Promise<Response>;
  /** As request, with the JSON of the answer; throws when the status is not the expected one. */
  json(method: string, path: string, options?: RequestOptions & { status?: number }): Promise<any>;
}

export interface TestServer extends Connection, AsyncDisposable {
  readonly dataDir: string;
  readonly databaseUrl: string | undefined;
  /** What the server logged, a JSON object a line. */
  readonly logLines: string[];
  /** Stops it and starts it again on the same data and port. */
  restart(): Promise<void>;
  stop(): Promise<void>;
}

export interface RequestOptions {
  token?: string | undefined;
  body?: unknown;
  headers?: Record<string, string>;
}

const PORT_DEADLINE_MS = 10_000;

export interface TestServerOptions {
  database?: DatabaseKind;
  /** A PostgreSQL that is there already, such as another instance's; whoever made it drops it. */
  databaseUrl?: string;
  /** Replaces the bus between instances. */
  bus?: Bus;
  env?: Record<string, string>;
  /** Replaces settings that are no variables, such as intervals. */
  adjust?: (config: Config) => Config;
}

/** Starts a server in this process. Rate limits are off unless the test turns them on. */
export async function startTestServer({
  database = "sqlite",
  databaseUrl,
  bus,
  env = {},
  adjust = (config) => config,
}: TestServerOptions = {}): Promise<TestServer> {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-test-"));
  const testDatabase = database === "postgres" && databaseUrl === undefined ? await createTestDatabase() : undefined;
  const settings = await databaseSettings(databaseUrl ?? testDatabase?.url);
  const logLines: string[] = [];
  const log = createLogger({ level: "debug", format: "json", write: (line) => logLines.push(line) });
  const configure = (port: number) =>
    adjust(
      loadConfig({
        PORT: String(port),
        DATA_DIR: dataDir,
        ...settings,
        RATE_LIMITS: "off",
        ...env,
      }),
    );
  let running: RunningServer | undefined = await start(configure(0), log, { bus });
  const url = running.url.origin;
  const port = Number(running.url.port);

  const server: TestServer = {
    ...connect(url),
    dataDir,
    databaseUrl: databaseUrl ?? testDatabase?.url,
    logLines,
    async restart() {
      await server.stop();
      running = await onceFree(() => start(configure(port), log, { bus }));
    },
    async stop() {
      await running?.stop();
      running = undefined;
    },
    async [Symbol.asyncDispose]() {
      await server.stop();
      await testDatabase?.drop();
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
  return server;
}

/** While a server is down, the system may give its port to an outgoing connection, for as long as that lives. */
async function onceFree<T>(listen: () => Promise<T>): Promise<T> {
  const deadline = Date.now() + PORT_DEADLINE_MS;
  for (;;) {
    try {
      return await listen();
    } catch (error) {
      const taken = error instanceof Error && "code" in error && error.code === "EADDRINUSE";
      if (!taken || Date.now() > deadline) throw error;
      await Bun.sleep(10);
    }
  }
}

/** How a test talks to the server at this address. */
export function connect(url: string): Connection {
  return {
    url,
    request: (method, path, options) => request(url, method, path, options),
    async json(method, path, { status, ...options } = {}) {
      const response = await request(url, method, path, options);
      const text = await response.text();
      if (status === undefined ? !response.ok : response.status !== status) {
        throw new Error(`${method} ${path} answered ${response.status}: ${text}`);
      }
      return text === "" ? undefined : JSON.parse(text);
    },
  };
}

function request(
  url: string,
  method: string,
  path: string,
  { token, body, headers = {} }: RequestOptions = {},
): Promise<Response> {
  return fetch(url + path, {
    method,
    headers: { ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }), ...headers },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
}

// Accounts

export interface TestAccount {
  email: string;
  password: string;
  userId: string;
  /** An account token. */
  token: string;
}

export interface TestDevice {
  id: string;
  token: string;
}

export async function createAccount(
  server: Connection,
  email = `${crypto.randomUUID()}@example.org`,
  password = "test123",
): Promise<TestAccount> {
  const { token, user_id } = await server.json("POST", "/api/auth/register", {
    body: { email, password },
    status: 201,
  });
  return { email, password, userId: user_id, token };
}

export async function createDevice(
  server: Connection,
  account: { token: string },
  name = "laptop",
): Promise<TestDevice> {
  const { device_id, token } = await server.json("POST", "/api/auth/device", {
    token: account.token,
    body: { name, device_type: "macos" },
    status: 201,
  });
  return { id: device_id, token };
}

// Sockets

export type Message = { type: string; [field: string]: any };

/** One WebSocket of a test: keeps what comes, in order, until the test asks for it. */
export class TestSocket {
  /** Every message that came, also those taken. */
  readonly received: Message[] = [];
  /** Called with each message as it comes, for tests that measure. */
  onMessage: ((message: Message) => void) | undefined;
  /** Resolves when the socket has closed, however it did. */
  readonly closed: Promise<{ code: number; reason: string }>;
  readonly #socket: WebSocket;
  #taken = 0;
  #wake: (() => void) | undefined;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => {
      const message: Message = JSON.parse(String(data));
      this.received.push(message);
      this.onMessage?.(message);
      this.#wake?.();
    });
    this.closed = new Promise((resolve) => {
      socket.addEventListener("close", ({ code, reason }) => {
        resolve({ code, reason });
        this.#wake?.();
      });
    });
  }

  /** @param query beside the token, such as "&protocol=2" */
  static async open(server: { url: string }, token: string, query = ""): Promise<TestSocket> {
    const address = `${server.url.replace("http", "ws")}/api/sync/ws?token=${token}${query}`;
    const socket = new WebSocket(address);
    const test = new TestSocket(socket);
    await within(
      new Promise<void>((resolve, reject) => {
        socket.addEventListener("open", () => resolve());
        socket.addEventListener("close", ({ code }) =>
          reject(new Error(`the socket closed before it opened: ${code}`)),
        );
      }),
      "the socket to open",
    );
    return test;
  }

  send(message: unknown): void {
    this.#socket.send(typeof message === "string" ? message : JSON.stringify(message));
  }

  sendBytes(bytes: Uint8Array<ArrayBuffer>): void {
    this.#socket.send(bytes);
  }

  get isOpen(): boolean {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  /** The next message that was not taken yet. */
  async next(): Promise<Message> {
    const deadline = Date.now() + DEADLINE_MS;
    while (this.#taken >= this.received.length) {
      if (this.#socket.readyState >= WebSocket.CLOSING)
        throw new Error("the socket closed while a message was expected");
      await within(new Promise<void>((resolve) => (this.#wake = resolve)), "a message", deadline - Date.now());
    }
    const message = this.received[this.#taken];
    this.#taken += 1;
    if (message === undefined) throw new Error("a message was lost in the test");
    return message;
  }

  /** The next message that fits; those before it are passed over. */
  async nextWhere(fits: (message: Message) => boolean): Promise<Message> {
    for (;;) {
      const message = await this.next();
      if (fits(message)) return message;
    }
  }

  /** The next message of this type. */
  nextOf(type: string): Promise<Message> {
    return this.nextWhere((message) => message.type === type);
  }

  /** Messages that came and were not taken. */
  get pending(): readonly Message[] {
    return this.received.slice(this.#taken);
  }

  /** Sends with a ref and waits for its ack or error. */
  async sendForAnswer(message: Record<string, unknown>): Promise<Message> {
    const ref = crypto.randomUUID();
    this.send({ ...message, ref });
    return this.nextWhere((answer) => answer["ref"] === ref);
  }

  /** Asks something with an answer: every message that the server sent before has come when this resolves. */
  async settle(): Promise<void> {
    await this.sendForAnswer({ type: "no_such_type" });
  }

  async close(): Promise<void> {
    this.#socket.close();
    await this.closed;
  }

  /** As a lost network: no goodbye. */
  terminate(): void {
    this.#socket.terminate();
  }
}

/** Fails loudly when an expected event does not come. */
export async function within<T>(promise: Promise<T>, what: string, milliseconds = DEADLINE_MS): Promise<T> {
  let timer: Timer | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`waited ${milliseconds} ms for ${what}`)), milliseconds);
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}

// Content

/** What the shipped client stores: `ENC:` + base64(nonce ‖ ciphertext), as base64 of that text. */
export function randomBlob(bytes = 48): string {
  const sealed = Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("base64");
  return Buffer.from(`ENC:${sealed}`).toString("base64");
}

export function slotUpdate(slotNumber: number, blob: string, timestamp = Date.now()) {
  return { type: "slot_update", slot_number: slotNumber, encrypted_blob: blob, timestamp };
}

export function historyPush(blob: string, id: string = crypto.randomUUID(), contentHash: string = crypto.randomUUID()) {
  return { type: "history_push", id, encrypted_blob: blob, content_hash: contentHash };
}
