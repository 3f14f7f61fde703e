/** Many sockets: what an idle one costs, how fast a crowd is back, how fast the server is up. */
import { createAccount, createDevice, connect, historyPush, randomBlob } from "../harness.ts";
import type { Scenario } from "./bench.ts";
import { median, round } from "./measure.ts";
import { relayLoad } from "./relay-load.ts";
import { clipslotOnSqlite, residentBytes, type Subject } from "./subjects.ts";

const IDLE_SOCKETS = 10_000;
const ACCOUNTS = 200;
const RETURNING = 2_000;
const MISSED = 10;

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
      const accounts = await Promise.all(Array.from({ length: ACCOUNTS }, () => createAccount(client)));
      const tokens: string[] = [];
      for (const account of accounts) {
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
  title: "Start to ready, memory at rest (from source)",
  async run(rounds) {
    const times: number[] = [];
    const memories: number[] = [];
    for (let count = 0; count < rounds; count += 1) {
      const started = performance.now();
      await using server = await clipslotOnSqlite();
      await fetch(`${server.url}/readyz`);
      times.push(performance.now() - started);
      memories.push(await residentBytes(server.pid));
    }
    return {
      rows: [{ "ms to the first answer": round(median(times), 1), "MB at rest": round(median(memories) / 2 ** 20, 1) }],
    };
  },
};

async function manyDevices(server: Subject, accounts: number, devicesEach: number): Promise<string[]> {
  const client = connect(server.url);
  const tokens: string[] = [];
  for (let index = 0; index < accounts; index += 1) {
    const account = await createAccount(client);
    for (let device = 0; device < devicesEach; device += 1) tokens.push((await createDevice(client, account)).token);
  }
  return tokens;
}

async function openAll(server: Subject, tokens: readonly string[]): Promise<WebSocket[]> {
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
