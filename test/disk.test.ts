/** A disk that is full or fails: nothing is acknowledged that isn't kept, and when the disk is well again so is the server. */
import { Database } from "bun:sqlite";
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startChildServer } from "./child.ts";
import {
  connect,
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  slotUpdate,
  TestSocket,
  within,
} from "./harness.ts";

setDefaultTimeout(60_000);

const DISK_MIB = 8;
const BALLAST_BYTES = 3 * 1024 * 1024;
const BLOB_BYTES = 40_000;
const HEAL_MS = 10_000;

const isRoot = process.platform === "linux" && process.getuid?.() === 0;
const cannotMount = isRoot
  ? obstacleTo(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"])
  : "it takes root on Linux";
const cannotTrace = isRoot ? obstacleTo(["strace", "-e", "trace=none", "true"]) : "it takes root on Linux";
if (cannotMount !== undefined) console.log(`skipped: a full disk, for a small one can't be mounted: ${cannotMount}`);
if (cannotTrace !== undefined) console.log(`skipped: a failing disk, for strace can't be used: ${cannotTrace}`);

test.skipIf(cannotMount !== undefined)(
  "[W1] a full disk: 507, an error on the socket, nothing acknowledged is lost; well again when there is room",
  async () => {
    await using disk = mountSmallDisk();
    const ballast = join(disk.path, "ballast");
    writeFileSync(ballast, Buffer.alloc(BALLAST_BYTES));
    const server = await startChildServer({ DATA_DIR: join(disk.path, "data") });
    const connection = connect(server.url);
    const account = await createAccount(connection);
    const device = await createDevice(connection, account);
    const socket = await TestSocket.open(server, device.token, "&protocol=2");
    const other = await TestSocket.open(server, (await createDevice(connection, account)).token, "&protocol=2");
    const acknowledged = new Set<string>();

    const refusal = await fillUp(socket, acknowledged);
    expect(refusal).toMatchObject({ type: "error", code: "disk_full" });
    expect(acknowledged.size).toBeGreaterThan(0);

    // While there is no room: every way to write says so, and reading goes on.
    const token = device.token;
    for (let tries = 0; tries < 5; tries += 1) {
      expect(await socket.sendForAnswer(historyPush(randomBlob(BLOB_BYTES)))).toMatchObject({ code: "disk_full" });
      expect(await socket.sendForAnswer(slotUpdate(1, randomBlob(BLOB_BYTES)))).toMatchObject({ code: "disk_full" });
      for (const [method, path, body] of [
        ["PUT", "/api/sync/slots/1", { encrypted_blob: randomBlob(BLOB_BYTES) }],
        ["POST", "/api/sync/history", historyPush(randomBlob(BLOB_BYTES))],
      ] as const)
        expect(await connection.json(method, path, { token, body, status: 507 })).toMatchObject({ code: "disk_full" });
    }
    expect(await connection.json("GET", "/api/sync/slots", { token, status: 200 })).toEqual([]);
    expect((await connection.request("GET", "/healthz")).status).toBe(200);
    await other.settle();
    expect(other.received.filter(({ type }) => type === "slot_updated")).toEqual([]);
    expect(new Set(other.received.filter(({ type }) => type === "history_new").map(({ id }) => id))).toEqual(
      acknowledged,
    );

    rmSync(ballast);
    await writeUntilItWorks(socket, acknowledged);
    await connection.json("PUT", "/api/sync/slots/1", { token, body: { encrypted_blob: randomBlob(BLOB_BYTES) } });
    expect(await other.nextOf("slot_updated")).toMatchObject({ slot_number: 1 });
    expect(await server.kill("SIGTERM")).toBe(0);
    expectKept(join(disk.path, "data"), account.userId, acknowledged);
  },
);

test.skipIf(cannotTrace !== undefined)(
  "[W1] a disk that can't sync: 503, nothing acknowledged; well again when it can, and nothing acknowledged is lost",
  async () => {
    const dataDir = mkdtempSync(join(tmpdir(), "clipslot-disk-"));
    try {
      const server = await startChildServer({ DATA_DIR: dataDir });
      const connection = connect(server.url);
      const account = await createAccount(connection);
      const { token } = await createDevice(connection, account);
      const socket = await TestSocket.open(server, token, "&protocol=2");
      const other = await TestSocket.open(server, (await createDevice(connection, account)).token, "&protocol=2");
      const acknowledged = new Set<string>();
      await push(socket, acknowledged);
      await other.nextOf("history_new");

      const fault = await failSyncs(server.pid);
      for (let tries = 0; tries < 5; tries += 1) {
        expect(await socket.sendForAnswer(historyPush(randomBlob()))).toMatchObject({
          type: "error",
          code: "unavailable",
        });
        const body = { encrypted_blob: randomBlob() };
        await connection.json("PUT", "/api/sync/slots/1", { token, body, status: 503 });
        // Many at once go another way to the disk than one.
        for (let count = 0; count < 30; count += 1) socket.send({ ...historyPush(randomBlob()), ref: "many" });
        const answers = [];
        while (answers.length < 30) answers.push(await socket.nextWhere(({ ref }) => ref === "many"));
        expect(new Set(answers.map(({ code }) => code))).toEqual(new Set(["unavailable"]));
      }
      expect((await connection.request("GET", "/healthz")).status).toBe(200);
      expect(other.pending).toEqual([]);
      await fault.end();

      await writeUntilItWorks(socket, acknowledged);
      await connection.json("PUT", "/api/sync/slots/1", { token, body: { encrypted_blob: randomBlob() }, status: 200 });
      await other.nextOf("slot_updated");
      await server.kill("SIGKILL");
      expectKept(dataDir, account.userId, acknowledged);
    } finally {
      rmSync(dataDir, { recursive: true, force: true });
    }
  },
);

async function push(socket: TestSocket, acknowledged: Set<string>, blobBytes = BLOB_BYTES) {
  const item = historyPush(randomBlob(blobBytes));
  const answer = await socket.sendForAnswer(item);
  if (answer.type === "ack") acknowledged.add(item.id);
  return answer;
}

/** Pushes until one is refused, and answers why. */
async function fillUp(socket: TestSocket, acknowledged: Set<string>) {
  for (;;) {
    const answer = await push(socket, acknowledged);
    if (answer.type === "error") return answer;
    if (acknowledged.size * BLOB_BYTES > DISK_MIB * 1024 * 1024) throw new Error("the disk takes more than it has");
  }
}

async function writeUntilItWorks(socket: TestSocket, acknowledged: Set<string>): Promise<void> {
  const deadline = Date.now() + HEAL_MS;
  while ((await push(socket, acknowledged)).type === "error") {
    if (Date.now() > deadline) throw new Error("the disk is well, the server is not");
    await Bun.sleep(50);
  }
}

/** The file is whole, holds all that was acknowledged, and its books are right. */
function expectKept(dataDir: string, userId: string, acknowledged: ReadonlySet<string>): void {
  using database = new Database(join(dataDir, "clipslot.db"), { strict: true });
  expect(database.query("PRAGMA integrity_check").get()).toEqual({ integrity_check: "ok" });
  expect(database.query("PRAGMA foreign_key_check").all()).toEqual([]);
  const rows = database.query<{ id: string }, [string]>("SELECT id FROM synced_history WHERE user_id = ?").all(userId);
  const ids = new Set(rows.map(({ id }) => id));
  expect([...acknowledged].filter((id) => !ids.has(id))).toEqual([]);
  const books = database.query(`
    SELECT stored_bytes AS bytes, history_items AS items, seq >= (SELECT max(seq) FROM synced_history) AS counted FROM users`);
  const counts = database.query(`
    SELECT (SELECT sum(length(encrypted_blob)) FROM synced_history) + (SELECT coalesce(sum(length(encrypted_blob)), 0) FROM synced_slots) AS bytes,
      (SELECT count(*) FROM synced_history) AS items, 1 AS counted`);
  expect(books.get()).toEqual(counts.get());
}

function mountSmallDisk() {
  const path = mkdtempSync(join(tmpdir(), "clipslot-small-disk-"));
  runOrThrow(["mount", "-t", "tmpfs", "-o", `size=${DISK_MIB}m,mode=0700`, "clipslot-test", path]);
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      runOrThrow(["umount", "--lazy", path]);
      rmSync(path, { recursive: true, force: true });
    },
  };
}

/** From when this resolves, every sync of the process answers EIO, until `end`. */
async function failSyncs(pid: number) {
  const calls = "fdatasync,fsync";
  const strace = Bun.spawn(
    ["strace", "-f", "-p", String(pid), "-e", `trace=${calls}`, "-e", `inject=${calls}:error=EIO`, "-o", "/dev/null"],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  const reader = strace.stderr.getReader();
  const decoder = new TextDecoder();
  let output = "";
  const attached = (async () => {
    while (!/attached/.test(output)) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`strace could not attach: ${output}`);
      output += decoder.decode(value, { stream: true });
    }
  })();
  await within(attached, "strace to attach");
  return {
    async end() {
      strace.kill("SIGINT");
      await within(strace.exited, "strace to let go");
    },
  };
}

function runOrThrow(command: string[]): void {
  const obstacle = obstacleTo(command);
  if (obstacle !== undefined) throw new Error(`${command.join(" ")}: ${obstacle}`);
}

/** undefined: the command works. */
function obstacleTo(command: string[]): string | undefined {
  if (Bun.which(command[0] ?? "") === null) return `${command[0]} is not installed`;
  const { exitCode, stderr } = Bun.spawnSync(command, { stdout: "ignore", stderr: "pipe" });
  return exitCode === 0 ? undefined : stderr.toString().trim() || `it ended with code ${exitCode}`;
}
