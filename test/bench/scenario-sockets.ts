/** Many sockets: what an idle one costs, how fast a crowd is back, how fast the server is up. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FROM_SOURCE, startChildServer } from "../child.ts";
import { createAccount, createDevice, connect, historyPush, randomBlob } from "../harness.ts";
import type { Scenario } from "./bench.ts";
import { median, round } from "./measure.ts";
import { relayLoad } from "./relay-load.ts";
import { clipslotOnSqlite, residentBytes, type Subject } from "./subjects.ts";

const IDLE_SOCKETS = 10_000;
const ACCOUNTS = 200;
const RETURNING = 2_000;
const MISSED = 10;
const RESTING_SOCKETS = 1_000;
const DEVICES_OF_AN_ACCOUNT = 50;
const SETTLE_MS = 1_000;

export const idle: Scenario = {
  title: `${IDLE_SOCKETS.toLocaleString("en")} idle sockets on SQLite`,
  async run(rounds) {
    await using server = await clipslotOnSqlite();
    const pair = () =>
      relayLoad({
        urls: [server.url, server.url],
        accounts: "clipslot",
        protocol: 2,
        pairs: 1,
        blobBytes: 1_024,
        rate: 100,
      });
    const tokens = await manyDevices(server, ACCOUNTS, IDLE_SOCKETS / ACCOUNTS);
    const alone: number[] = [];
    for (let count = 0; count < rounds; count += 1) alone.push((await pair()).p99);
    const rest = await residentBytes(server.pid);
    const sockets = await openAll(server, tokens);
    const beside: number[] = [];
    for (let count = 0; count < rounds; count += 1) beside.push((await pair()).p99);
    const full = await residentBytes(server.pid);
    for (const socket of sockets) socket.terminate();
    return {
      rows: [
        {
          "KB a socket": round((full - rest) / IDLE_SOCKETS / 1024, 2),
          "MB at rest": round(rest / 2 ** 20, 1),
          "a pair's p99 ms alone": round(median(alone), 2),
          "a pair's p99 ms beside them": round(median(beside), 2),
        },
      ],
    };
  },
};

export const storm: Scenario = {
  title: `${RETURNING.toLocaleString("en")} devices return at once, each having missed ${MISSED} changes, SQLite`,
  async run(rounds) {
    const seconds: number[] = [];
    const peaks: number[] = [];
    for (let count = 0; count < rounds; count += 1) {
      await using server = await clipslotOnSqlite();
      const client = connect(server.url);
      const tokens: string[] = [];
      for (let number = 0; number < ACCOUNTS; number += 1) {
        const account = await createAccount(client);
        for (let index = 0; index < RETURNING / ACCOUNTS; index += 1) {
          tokens.push((await createDevice(client, account)).token);
        }
        const body = Array.from({ length: MISSED }, () => historyPush(randomBlob(768)));
        await client.json("POST", "/api/sync/history", { token: account.token, body });
      }
      let peak = 0;
      const watching = setInterval(
        () => void residentBytes(server.pid).then((bytes) => (peak = Math.max(peak, bytes))),
        50,
      );
      const started = performance.now();
      await Promise.all(tokens.map((token) => untilReceived(server, token, MISSED)));
      seconds.push((performance.now() - started) / 1000);
      clearInterval(watching);
      peaks.push(peak);
    }
    return {
      rows: [
        {
          "seconds until all are current": round(median(seconds), 2),
          "peak memory MB": round(median(peaks) / 2 ** 20, 1),
        },
      ],
    };
  },
};

export const start: Scenario = {
  title: `Start on SQLite, until the server says that it is ready and until its first answer; memory at rest, and with ${RESTING_SOCKETS.toLocaleString("en")} idle sockets`,
  async run(rounds) {
    using folder = temporaryFolder();
    const binary = join(folder.path, "clipslot-server");
    await build(binary);
    const filled = join(folder.path, "filled");
    const tokens = await deviceTokens(filled, RESTING_SOCKETS);
    const programs = [
      { name: `the binary (${round(Bun.file(binary).size / 1e6)} MB)`, program: [binary] },
      { name: "from source", program: FROM_SOURCE },
    ];
    const starts = programs.map(() => ({
      anew: [] as Start[],
      again: [] as Start[],
      rest: [] as number[],
      full: [] as number[],
    }));
    for (let count = 0; count < rounds; count += 1) {
      for (const [index, { program }] of programs.entries()) {
        const fresh = await startOnce(join(folder.path, `${index}-${count}`), program);
        const again = await startOnce(filled, program, tokens);
        starts[index]?.anew.push(fresh);
        starts[index]?.again.push(again);
        starts[index]?.rest.push(again.restBytes);
        starts[index]?.full.push(again.fullBytes);
      }
    }
    const milliseconds = (all: readonly Start[], read: (start: Start) => number) => round(median(all.map(read)), 1);
    const megabytes = (values: readonly number[]) => round(median(values) / 2 ** 20, 1);
    return {
      rows: programs.map(({ name }, index) => {
        const { anew = [], again = [], rest = [], full = [] } = starts[index] ?? {};
        return {
          case: name,
          "ready ms, new folder": milliseconds(anew, ({ readyMs }) => readyMs),
          "ready ms, with data": milliseconds(again, ({ readyMs }) => readyMs),
          "first answer ms, new folder": milliseconds(anew, ({ answerMs }) => answerMs),
          "first answer ms, with data": milliseconds(again, ({ answerMs }) => answerMs),
          "MB at rest": megabytes(rest),
          "MB with the sockets": megabytes(full),
        };
      }),
    };
  },
};

/** From before there was a process. */
interface Start {
  readyMs: number;
  answerMs: number;
}

/** Starts a server, and measures its memory when it has come to rest. */
async function startOnce(dataDir: string, program: readonly string[], tokens: readonly string[] = []) {
  const started = performance.now();
  const server = await startChildServer({ DATA_DIR: dataDir }, program);
  const readyMs = performance.now() - started;
  await fetch(`${server.url}/readyz`);
  const answerMs = performance.now() - started;
  await Bun.sleep(SETTLE_MS);
  const restBytes = await residentBytes(server.pid);
  const sockets = await openAll(server, tokens);
  await Bun.sleep(SETTLE_MS);
  const fullBytes = await residentBytes(server.pid);
  for (const socket of sockets) socket.terminate();
  await server.kill("SIGTERM");
  return { readyMs, answerMs, restBytes, fullBytes };
}

async function build(outfile: string): Promise<void> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "../../src/build.ts"), "--outfile", outfile], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  if ((await child.exited) !== 0) throw new Error("the binary could not be built");
}

/** So many devices in a new database, and their tokens. */
async function deviceTokens(dataDir: string, count: number): Promise<string[]> {
  const server = await startChildServer({ DATA_DIR: dataDir });
  const tokens = await manyDevices(server, count / DEVICES_OF_AN_ACCOUNT, DEVICES_OF_AN_ACCOUNT);
  await server.kill("SIGTERM");
  return tokens;
}

function temporaryFolder() {
  const path = mkdtempSync(join(tmpdir(), "clipslot-start-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

async function manyDevices(server: Pick<Subject, "url">, accounts: number, devicesEach: number): Promise<string[]> {
  const client = connect(server.url);
  const tokens: string[] = [];
  for (let index = 0; index < accounts; index += 1) {
    const account = await createAccount(client);
    for (let device = 0; device < devicesEach; device += 1) tokens.push((await createDevice(client, account)).token);
  }
  return tokens;
}

async function openAll(server: Pick<Subject, "url">, tokens: readonly string[]): Promise<WebSocket[]> {
  const sockets: WebSocket[] = [];
  for (let first = 0; first < tokens.length; first += 100) {
    const opening = tokens.slice(first, first + 100).map(
      (token) =>
        new Promise<WebSocket>((resolve, reject) => {
          const socket = new WebSocket(`${server.url.replace("http", "ws")}/api/sync/ws?token=${token}&protocol=2`);
          socket.addEventListener("message", ({ data }) => String(data).includes("sync_complete") && resolve(socket));
          socket.addEventListener("close", ({ code }) => reject(new Error(`a socket closed with ${code}`)));
        }),
    );
    sockets.push(...(await Promise.all(opening)));
  }
  return sockets;
}

/** Protocol 1, as the shipped client: what was missed comes by itself. */
function untilReceived(server: Subject, token: string, count: number): Promise<void> {
  return new Promise((resolve, reject) => {
    let received = 0;
    const socket = new WebSocket(`${server.url.replace("http", "ws")}/api/sync/ws?token=${token}`);
    socket.addEventListener("message", () => {
      received += 1;
      if (received < count) return;
      resolve();
      socket.terminate();
    });
    socket.addEventListener("close", ({ code }) => reject(new Error(`a socket closed with ${code}`)));
  });
}
