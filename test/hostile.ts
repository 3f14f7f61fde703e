/**
 * The stage of the hostile suite: a server with limits on, a victim with content, an attacker with an account of their
 * own, and two devices of a bystander that talk to each other all the time.
 */
import { createConnection } from "node:net";
import { expect } from "bun:test";
import {
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  within,
  type DatabaseKind,
  type TestAccount,
  type TestDevice,
  type TestServer,
  type TestServerOptions,
} from "./harness.ts";

/** What nobody else's trouble may cost the bystanders: far above what they see in peace, far below what a person notices twice. */
const BYSTANDER_MAX_MS = 2_000;

export interface Stage extends AsyncDisposable {
  server: TestServer;
  victim: TestAccount & { device: TestDevice; historyId: string };
  attacker: TestAccount & { device: TestDevice };
  /**
   * What must hold after every attack: the victim's data as it was, the bystanders served all the while, and nothing
   * in the log that is a fault of ours or a secret.
   */
  expectUnharmed(): Promise<void>;
}

export async function setStage(database: DatabaseKind, options: TestServerOptions = {}): Promise<Stage> {
  const server = await startTestServer({ database, ...options, env: { RATE_LIMITS: "on", ...options.env } });
  const victim = await createAccount(server, undefined, "victim's password");
  const victimDevice = await createDevice(server, victim);
  const attacker = await createAccount(server, undefined, "attacker's password");
  const attackerDevice = await createDevice(server, attacker);
  const blob = randomBlob();
  const item = historyPush(blob);
  await server.json("PUT", "/api/sync/slots/1", { token: victim.token, body: { encrypted_blob: blob } });
  await server.json("POST", "/api/sync/history", { token: victim.token, body: item });
  const state = () => Promise.all(["slots", "history"].map((what) => server.json("GET", `/api/sync/${what}`, victim)));
  const before = await state();
  const bystanders = await startBystanders(server);

  return {
    server,
    victim: { ...victim, device: victimDevice, historyId: item.id },
    attacker: { ...attacker, device: attackerDevice },
    async expectUnharmed() {
      expect(await state()).toEqual(before);
      expect(await bystanders.slowestMs()).toBeLessThan(BYSTANDER_MAX_MS);
      expectCleanLog(server, [
        victim.password,
        attacker.password,
        victim.token,
        victimDevice.token,
        attackerDevice.token,
        blob,
      ]);
    },
    async [Symbol.asyncDispose]() {
      await bystanders.stop();
      await server[Symbol.asyncDispose]();
    },
  };
}

/** No fault of ours, no frame of a stack, no SQL, no secret. */
export function expectCleanLog(server: TestServer, secrets: readonly string[]): void {
  const log = server.logLines.join("");
  expect(server.logLines.filter((line) => line.includes('"level":"error"'))).toEqual([]);
  expect(log).not.toMatch(/"stack"|SELECT |INSERT |UPDATE "/);
  for (const secret of secrets) expect(log).not.toContain(secret);
}

/** Two devices: one writes whenever the other has heard, which is all the time. */
async function startBystanders(server: TestServer) {
  const account = await createAccount(server);
  const writer = await TestSocket.open(server, (await createDevice(server, account)).token);
  const reader = await TestSocket.open(server, (await createDevice(server, account)).token);
  let slowest = 0;
  let stopped = false;
  const relay = async () => {
    const update = slotUpdate(2, randomBlob());
    const started = performance.now();
    writer.send(update);
    await reader.nextWhere((message) => message["encrypted_blob"] === update.encrypted_blob);
    slowest = Math.max(slowest, performance.now() - started);
    await Bun.sleep(10);
  };
  const running = (async () => {
    while (!stopped) await relay();
  })();
  running.catch(() => {});
  return {
    async slowestMs() {
      const heard = reader.received.length;
      while (reader.received.length <= heard) await Promise.race([running, Bun.sleep(5)]);
      return slowest;
    },
    async stop() {
      stopped = true;
      await running;
      await writer.close();
      await reader.close();
    },
  };
}

/** Raw bytes over TCP, and what came back until the server closed. */
export interface RawExchange {
  text: string;
  status: number | undefined;
  closed: boolean;
}

/**
 * Sends bytes as they are.
 *
 * @param options `half`: closes our end after sending; `until`: waits for an answer only, not for the end
 */
export async function exchange(
  server: { url: string },
  bytes: string | Uint8Array,
  { until = "end" }: { until?: "end" | "answer" } = {},
): Promise<RawExchange> {
  const { hostname, port } = new URL(server.url);
  const socket = createConnection({ host: hostname, port: Number(port) });
  let text = "";
  let closed = false;
  const done = new Promise<void>((resolve) => {
    socket.on("data", (chunk: Buffer) => {
      text += chunk.toString("latin1");
      if (until === "answer" && text.includes("\r\n\r\n")) resolve();
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      closed = true;
      resolve();
    });
  });
  socket.write(typeof bytes === "string" ? Buffer.from(bytes, "latin1") : bytes);
  await within(done, "the server to answer or to hang up", 20_000);
  socket.destroy();
  const status = /^HTTP\/1\.1 (\d{3})/.exec(text)?.[1];
  return { text, status: status === undefined ? undefined : Number(status), closed };
}

/** An HTTP request in two parts: the second is sent when the test says. */
export async function openRequest(
  server: TestServer,
  head: { method: string; path: string; token?: string },
  body: string,
): Promise<{ finish(): Promise<RawExchange> }> {
  const { hostname, port } = new URL(server.url);
  const socket = createConnection({ host: hostname, port: Number(port) });
  const answer = Promise.withResolvers<string>();
  let text = "";
  socket.on("data", (chunk: Buffer) => {
    text += chunk.toString("latin1");
    if (text.includes("\r\n\r\n")) answer.resolve(text);
  });
  socket.on("error", () => {});
  socket.on("close", () => answer.resolve(text));
  const authorization = head.token === undefined ? "" : `Authorization: Bearer ${head.token}\r\n`;
  socket.write(
    `${head.method} ${head.path} HTTP/1.1\r\nHost: x\r\n${authorization}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body.slice(0, 5)}`,
  );
  // Two requests on connections of their own: what came before them on this one has been read by then.
  await server.request("GET", "/healthz");
  await server.request("GET", "/healthz");
  return {
    async finish() {
      socket.write(body.slice(5));
      const got = await within(answer.promise, "an answer");
      socket.destroy();
      const status = /^HTTP\/1\.1 (\d{3})/.exec(got)?.[1];
      return { text: got, status: status === undefined ? undefined : Number(status), closed: true };
    },
  };
}
