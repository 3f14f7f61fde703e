/** What was acknowledged survives: kill -9 in a burst, and an orderly stop under load. */
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startChildServer, type ChildServer } from "./child.ts";
import { connect, createAccount, createDevice, historyPush, randomBlob, slotUpdate, TestSocket } from "./harness.ts";

const WRITERS = 4;
/** Acknowledgements after which the blow falls, in the middle of what is still on its way. */
const ACKNOWLEDGED_BEFORE_KILL = 150;

test("[W1] kill -9 in a burst, ten times: no acknowledged write is lost and the file is whole", async () => {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-kill-"));
  try {
    for (let round = 1; round <= 10; round += 1) {
      const server = await startChildServer({ DATA_DIR: dataDir, HISTORY_LIMIT: "100000" });
      const account = await createAccount(connect(server.url));
      const burst = await startBurst(server, account.token);
      await burst.acknowledged(ACKNOWLEDGED_BEFORE_KILL);
      await server.kill("SIGKILL");
      await burst.ended();
      const stored = readDatabase(dataDir, account.userId);
      expect(stored.integrity).toBe("ok");
      for (const id of burst.historyIds) expect(stored.historyIds).toContain(id);
      for (const [slot, timestamp] of burst.slotTimestamps)
        expect(stored.slotTimestamps.get(slot)).toBeGreaterThanOrEqual(timestamp);
    }
  } finally {
    rmSync(dataDir, { recursive: true, force: true });
  }
}, 60_000);

test("[W1] SIGTERM in a burst: exit code 0, sockets closed with 1012, no acknowledged write lost", async () => {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-stop-"));
  try {
    const server = await startChildServer({ DATA_DIR: dataDir, HISTORY_LIMIT: "100000" });
    const account = await createAccount(connect(server.url));
    const burst = await startBurst(server, account.token);
    await burst.acknowledged(ACKNOWLEDGED_BEFORE_KILL);
    expect(await server.kill("SIGTERM")).toBe(0);
    for (const { code } of await burst.ended()) expect(code).toBe(1012);
    const stored = readDatabase(dataDir, account.userId);
    for (const id of burst.historyIds) expect(stored.historyIds).toContain(id);
  } finally {
    rmSync(dataDir, { recursive: true, force: true });
  }
}, 30_000);

/** Several devices that write as fast as they are answered, until the server is gone. */
async function startBurst(server: ChildServer, token: string) {
  const historyIds = new Set<string>();
  const slotTimestamps = new Map<number, number>();
  let count = 0;
  let reach: (() => void) | undefined;
  let goal = Number.POSITIVE_INFINITY;
  const writing: Promise<void>[] = [];
  const sockets = await Promise.all(
    Array.from({ length: WRITERS }, async (_, writer) => {
      const device = await createDevice(connect(server.url), { token });
      const socket = await TestSocket.open(server, device.token);
      writing.push(write(socket, writer + 1));
      return socket;
    }),
  );
  return {
    historyIds,
    slotTimestamps,
    /** How each socket ended, once all writers have seen it. */
    async ended() {
      await Promise.all(writing);
      return Promise.all(sockets.map((socket) => socket.closed));
    },
    acknowledged(needed: number): Promise<void> {
      goal = needed;
      return new Promise((resolve) => (reach = resolve));
    },
  };

  async function write(socket: TestSocket, slot: number): Promise<void> {
    for (let timestamp = 1; ; timestamp += 1) {
      const push = historyPush(randomBlob(600));
      socket.send({ ...push, ref: "push" });
      socket.send({ ...slotUpdate(slot, randomBlob(600), timestamp), ref: "slot" });
      try {
        expect(await socket.nextOf("ack")).toMatchObject({ ref: "push", result: "applied" });
        expect(await socket.nextOf("ack")).toMatchObject({ ref: "slot", result: "applied" });
      } catch (error) {
        if (socket.isOpen) throw error;
        return; // the server is gone
      }
      historyIds.add(push.id);
      slotTimestamps.set(slot, timestamp);
      count += 2;
      if (count >= goal) reach?.();
    }
  }
}

function readDatabase(dataDir: string, userId: string) {
  using database = new Database(join(dataDir, "clipslot.db"), { strict: true });
  const history = database
    .query<{ id: string }, [string]>("SELECT id FROM synced_history WHERE user_id = ?")
    .all(userId);
  const slots = database
    .query<{ slot_number: number; updated_at: number }, [string]>(
      "SELECT slot_number, updated_at FROM synced_slots WHERE user_id = ?",
    )
    .all(userId);
  return {
    integrity: database.query<{ integrity_check: string }, []>("PRAGMA integrity_check").get()?.integrity_check,
    historyIds: new Set(history.map(({ id }) => id)),
    slotTimestamps: new Map(slots.map(({ slot_number, updated_at }) => [slot_number, updated_at])),
  };
}
