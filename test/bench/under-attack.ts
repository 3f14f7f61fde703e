/**
 * What two well-behaved devices notice of an attack: 50 logins a second, each at another account from
 * another address (so that no limit holds them back), and eight devices that each send as fast as they can, in a process of its own.
 *
 *   bun test/bench/under-attack.ts [--seconds 20] [--limits on|off]
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startChildServer } from "../child.ts";
import { connect, createAccount, createDevice, randomBlob, slotUpdate, TestSocket } from "../harness.ts";

const LOGINS_A_SECOND = 50;
const FLOODING_DEVICES = 8;
const FLOODED_BUFFER_BYTES = 256 * 1024;
const PAUSE_BETWEEN_RELAYS_MS = 5;
const PAUSE_BEFORE_RECONNECT_MS = 100;

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "20" },
    limits: { type: "string", default: "on" },
    attack: { type: "string" },
    tokens: { type: "string", default: "" },
  },
});
if (values.attack === undefined) await measure();
else attack(values.attack, values.tokens.split(","));

async function measure(): Promise<void> {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-bench-"));
  const child = await startChildServer({
    DATA_DIR: dataDir,
    RATE_LIMITS: values.limits,
    TRUSTED_PROXIES: "127.0.0.1",
  });
  const server = connect(child.url);
  const account = await createAccount(server);
  const writer = await TestSocket.open(server, (await createDevice(server, account)).token);
  const reader = await TestSocket.open(server, (await createDevice(server, account)).token);
  const attacker = await createAccount(server);
  const tokens: string[] = [];
  for (let count = 0; count < FLOODING_DEVICES; count += 1) tokens.push((await createDevice(server, attacker)).token);

  await relays(writer, reader, 2_000);
  const peace = await relays(writer, reader, 5_000);
  const attacking = Bun.spawn([process.execPath, import.meta.path, "--attack", child.url, "--tokens", tokens.join()], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await Bun.sleep(1_000);
  const attacked = await relays(writer, reader, Number(values.seconds) * 1_000);
  attacking.kill("SIGTERM");
  console.log(`RATE_LIMITS=${values.limits}`);
  console.log(`in peace      ${summary(peace)}`);
  console.log(`under attack  ${summary(attacked)}`);
  console.log(`attacker      ${(await new Response(attacking.stdout).text()).trim()}`);
  await writer.close();
  await reader.close();
  await child.kill("SIGTERM");
  rmSync(dataDir, { recursive: true, force: true });
}

/** One writes, the other hears; how long each took. */
async function relays(writer: TestSocket, reader: TestSocket, milliseconds: number): Promise<number[]> {
  const times: number[] = [];
  for (const end = performance.now() + milliseconds; performance.now() < end;) {
    const update = slotUpdate(1, randomBlob(200));
    const started = performance.now();
    writer.send(update);
    await reader.nextWhere((message) => message["encrypted_blob"] === update.encrypted_blob);
    times.push(performance.now() - started);
    await Bun.sleep(PAUSE_BETWEEN_RELAYS_MS);
  }
  return times;
}

function summary(times: number[]): string {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number) => `${(sorted[Math.floor(share * (sorted.length - 1))] ?? Number.NaN).toFixed(1)} ms`;
  return `p50 ${at(0.5)}, p99 ${at(0.99)}, slowest ${at(1)} (${times.length} relays)`;
}

/** Runs until it is told to stop, then says what it did. */
function attack(url: string, tokens: string[]): void {
  const counts: Record<string, number> = { messages: 0 };
  process.once("SIGTERM", () => {
    console.log(JSON.stringify(counts));
    process.exit(0);
  });
  const count = (what: string) => (counts[what] = (counts[what] ?? 0) + 1);
  setInterval(() => {
    const body = JSON.stringify({ email: `${crypto.randomUUID()}@example.org`, password: "a guess" });
    const headers = { "X-Forwarded-For": Array.from({ length: 4 }, () => Math.floor(Math.random() * 256)).join(".") };
    fetch(`${url}/api/auth/login`, { method: "POST", body, headers }).then(
      ({ status }) => count(`login ${status}`),
      () => count("login failed"),
    );
  }, 1_000 / LOGINS_A_SECOND);
  for (const token of tokens) void flood(`${url.replace("http", "ws")}/api/sync/ws?token=${token}`, count);
}

/** Sends until it is cut off, comes back, and goes on. */
async function flood(address: string, count: (what: string) => void): Promise<never> {
  const frame = JSON.stringify(slotUpdate(1, randomBlob(200)));
  for (;;) {
    const socket = new WebSocket(address);
    await new Promise((resolve) => {
      socket.addEventListener("open", resolve);
      socket.addEventListener("close", resolve);
    });
    count(socket.readyState === WebSocket.OPEN ? "opened" : "refused");
    while (socket.readyState === WebSocket.OPEN) {
      for (let burst = 0; burst < 200 && socket.bufferedAmount < FLOODED_BUFFER_BYTES; burst += 1) {
        socket.send(frame);
        count("messages");
      }
      await Bun.sleep(0);
    }
    await Bun.sleep(PAUSE_BEFORE_RECONNECT_MS);
  }
}
