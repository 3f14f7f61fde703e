/**
 * What it costs when a device comes back: the server's memory while it sends 10,000 missed changes, and the time of a
 * catch-up against the size of the account. The server is a process of its own on SQLite; its memory is what Linux says.
 *
 *   bun test/bench/catch-up.ts
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startChildServer, type ChildServer } from "../child.ts";
import { connect, createAccount, createDevice, randomBlob, type Connection, type TestDevice } from "../harness.ts";
import { RawSocket } from "../raw-socket.ts";
import { median, round, table, type Row } from "./measure.ts";

const MISSED = 10_000;
const BLOB_BYTES = 768;
const BATCH = 100;
/** Catch-ups of one account in a turn, and turns. */
const SAMPLES = 20;
const TURNS = 10;
const WARM_UP_TURNS = 3;

const dataDir = mkdtempSync(join(tmpdir(), "clipslot-bench-"));
const server = await startChildServer({
  DATA_DIR: dataDir,
  HISTORY_LIMIT: "1000000",
  ACCOUNT_STORAGE_BYTES: String(2 ** 34),
  LOG_LEVEL: "info",
});
try {
  console.log(`## A device comes back after ${MISSED.toLocaleString("en")} changes\n`);
  console.log(table(await comeBack(server)));
  console.log("\n## A catch-up against the size of the account\n");
  console.log(table(await againstSize(server)));
} finally {
  await server.kill("SIGTERM");
  rmSync(dataDir, { recursive: true, force: true });
}

async function comeBack({ url, pid }: ChildServer): Promise<Row[]> {
  const api = connect(url);
  const account = await createAccount(api);
  const writer = await createDevice(api, account);
  const readers: { name: string; device: TestDevice; query: string; stalls?: boolean }[] = [];
  for (const turn of ["first", "again"]) {
    readers.push({ name: `protocol 1, ${turn}`, device: await createDevice(api, account), query: "" });
    readers.push({ name: `protocol 2, ${turn}`, device: await createDevice(api, account), query: "&protocol=2" });
  }
  readers.push({
    name: "protocol 2, reads nothing",
    device: await createDevice(api, account),
    query: "&protocol=2",
    stalls: true,
  });
  await fill(api, writer, MISSED);

  const rows: Row[] = [];
  for (const { name, device, query, stalls = false } of readers) {
    const before = residentMiB(pid);
    resetPeak(pid);
    const started = performance.now();
    const socket = await RawSocket.open({ url }, device.token, { query, answersPings: true });
    if (stalls) {
      socket.pause();
      await Bun.sleep(2_000); // nothing comes that could be waited for
    } else {
      for (let count = 0; count < MISSED;) {
        const event = await socket.next();
        if (event.kind === "message" && event.message.type === "history_new") count += 1;
      }
    }
    const seconds = (performance.now() - started) / 1000;
    rows.push({
      device: name,
      seconds: stalls ? "" : round(seconds, 2),
      "changes/s": stalls ? "" : round(MISSED / seconds),
      "server before, MiB": round(before, 1),
      "at most, MiB": round(peakMiB(pid), 1),
      "grew by, MiB": round(peakMiB(pid) - before, 1),
    });
    socket.destroy();
    await socket.ended;
  }
  return rows;
}

/** The accounts take turns, so that what the machine does besides falls on all of them. */
async function againstSize({ url, pid }: ChildServer): Promise<Row[]> {
  const accounts = [];
  for (const size of [1_000, 10_000, 100_000]) accounts.push({ size, ...(await missing100(connect(url), size)) });
  const measured = accounts.map(() => ({ times: [] as number[], processorMs: 0 }));
  for (let turn = 0; turn < WARM_UP_TURNS + TURNS; turn += 1) {
    for (const [index, { reader, query }] of accounts.entries()) {
      const before = processorMs(pid);
      const times: number[] = [];
      while (times.length < SAMPLES) times.push(await catchUp(url, reader, query));
      if (turn < WARM_UP_TURNS) continue;
      measured[index]?.times.push(...times);
      if (measured[index] !== undefined) measured[index].processorMs += processorMs(pid) - before;
    }
  }
  return accounts.map(({ size }, index) => ({
    "items in the account": size.toLocaleString("en"),
    missed: 100,
    "median, ms": round(median(measured[index]?.times ?? []), 2),
    "server's processor time, ms": round((measured[index]?.processorMs ?? 0) / (TURNS * SAMPLES), 2),
  }));
}

/** An account with so many items, and a device whose cursor is of before the last hundred. */
async function missing100(api: Connection, size: number): Promise<{ reader: TestDevice; query: string }> {
  const account = await createAccount(api);
  const [writer, reader] = [await createDevice(api, account), await createDevice(api, account)];
  await fill(api, writer, size - 100);
  let place: { cursor: string; has_more: boolean } = { cursor: "", has_more: true };
  while (place.has_more) {
    const cursor = place.cursor === "" ? "" : `&cursor=${place.cursor}`;
    place = await api.json("GET", `/api/sync/changes?limit=1000${cursor}`, { token: writer.token });
  }
  await fill(api, writer, 100);
  return { reader, query: `&protocol=2&cursor=${place.cursor}` };
}

/** @returns milliseconds from connecting to sync_complete */
async function catchUp(url: string, device: TestDevice, query: string): Promise<number> {
  const started = performance.now();
  const socket = await RawSocket.open({ url }, device.token, { query });
  await socket.messageWhere(({ type }) => type === "sync_complete");
  const milliseconds = performance.now() - started;
  socket.destroy();
  await socket.ended;
  return milliseconds;
}

async function fill(api: Connection, device: TestDevice, count: number): Promise<void> {
  for (let sent = 0; sent < count; sent += BATCH) {
    const body = Array.from({ length: Math.min(BATCH, count - sent) }, () => {
      return { id: crypto.randomUUID(), content_hash: crypto.randomUUID(), encrypted_blob: randomBlob(BLOB_BYTES) };
    });
    await api.json("POST", "/api/sync/history", { token: device.token, body, status: 201 });
  }
}

// proc(5): what the kernel says of a process.

function residentMiB(pid: number): number {
  return statusKiB(pid, "VmRSS") / 1024;
}

function peakMiB(pid: number): number {
  return statusKiB(pid, "VmHWM") / 1024;
}

function resetPeak(pid: number): void {
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
}

function statusKiB(pid: number, field: string): number {
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
}

/** User and system time; the clock ticks a hundred times a second. */
function processorMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}
