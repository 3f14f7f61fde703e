/** Several instances on one PostgreSQL: as correct as one process. */
import { describe, expect, test } from "bun:test";
import type { Bus } from "../src/bus/bus.ts";
import { memoryBus, type MemoryMedium } from "../src/bus/memory.ts";
import { startChildServer } from "./child.ts";
import {
  connect,
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  within,
  type Message,
  type TestServer,
} from "./harness.ts";
import { databaseSettings } from "./pgbouncer.ts";
import { createTestDatabase } from "./postgres.ts";

const JWT_SECRET = "0123456789abcdefghijklmnopqrstuvwxyz-instances";

/** For a longer race: `RACE_CHANGES=10000 RACE_RUNS=10 bun run test test/instances.test.ts -t "racing writers"`. */
const RACE_CHANGES = Number(process.env["RACE_CHANGES"] ?? 400);
const RACE_RUNS = Array.from({ length: Number(process.env["RACE_RUNS"] ?? 1) }, (_, index) => index + 1);
const RACE_DEADLINE_MS = 30_000 + RACE_CHANGES * 30;

describe("two instances on one PostgreSQL", () => {
  test("started at once on an empty database, both come up and serve each other's tokens", async () => {
    await using pair = await startPair();
    const account = await createAccount(pair.first);
    expect(await pair.second.json("GET", "/api/auth/devices", { token: account.token })).toEqual([]);
  });

  test("[R1] a change on one reaches a device on the other, whether it came by socket or by REST", async () => {
    await using pair = await startPair();
    const account = await createAccount(pair.first);
    const [here, there] = [await createDevice(pair.first, account), await createDevice(pair.second, account)];
    const writer = await TestSocket.open(pair.first, here.token);
    const reader = await TestSocket.open(pair.second, there.token);
    const update = slotUpdate(1, randomBlob());
    writer.send(update);
    expect(await reader.next()).toMatchObject({ ...update, type: "slot_updated", updated_by: here.id });
    const blob = randomBlob();
    await pair.first.json("PUT", "/api/sync/slots/2", { token: here.token, body: { encrypted_blob: blob } });
    expect(await reader.next()).toMatchObject({ type: "slot_updated", slot_number: 2, encrypted_blob: blob });
  });

  test.each(RACE_RUNS)(
    "[R1] [W9] four racing writers on two instances: every reader has every change once, in seq order (%d)",
    async () => {
      await using pair = await startPair();
      await race(pair, RACE_CHANGES / 4);
    },
    RACE_DEADLINE_MS,
  );

  test("[R6] a device deleted on one instance is cut off on the other within a second", async () => {
    await using pair = await startPair();
    const account = await createAccount(pair.first);
    const device = await createDevice(pair.first, account);
    const socket = await TestSocket.open(pair.second, device.token);
    await pair.second.json("GET", "/api/sync/slots", { token: device.token });
    await pair.first.json("DELETE", `/api/auth/device/${device.id}`, { token: account.token, status: 204 });
    expect((await within(socket.closed, "the socket to be closed", 1_000)).code).toBe(4401);
    await pair.second.json("GET", "/api/sync/slots", { token: device.token, status: 401 });
  });

  test("[R6] a changed password ends the sockets and tokens of the other instance within a second", async () => {
    await using pair = await startPair();
    const account = await createAccount(pair.first);
    const device = await createDevice(pair.first, account);
    const socket = await TestSocket.open(pair.second, device.token);
    const body = { current_password: account.password, new_password: "another-password" };
    const { token } = await pair.first.json("POST", "/api/auth/password", { token: account.token, body });
    expect((await within(socket.closed, "the socket to be closed", 1_000)).code).toBe(4401);
    await pair.second.json("GET", "/api/sync/slots", { token: device.token, status: 401 });
    await pair.second.json("GET", "/api/sync/slots", { token, status: 200 });
  });

  test("[R2] a device that moves to the other instance gets what it missed and nothing twice", async () => {
    await using pair = await startPair();
    const account = await createAccount(pair.first);
    const [mover, other] = [await createDevice(pair.first, account), await createDevice(pair.first, account)];
    const writer = await TestSocket.open(pair.first, other.token);
    const before = await TestSocket.open(pair.first, mover.token);
    for (let index = 0; index < 5; index += 1) writer.send(historyPush(randomBlob()));
    for (let index = 0; index < 5; index += 1) await before.nextOf("history_new");
    await confirmedOn(pair.first, account.token, mover.id);
    await before.close();
    const missed = historyPush(randomBlob());
    expect(await writer.sendForAnswer(missed)).toMatchObject({ result: "applied" });
    const after = await TestSocket.open(pair.second, mover.token);
    expect(await after.next()).toMatchObject({ type: "history_new", id: missed.id });
    await after.settle();
    expect(after.received.filter(({ type }) => type === "history_new")).toHaveLength(1);
  });

  test("the list of devices says who is connected, and how far behind", async () => {
    await using pair = await startPair();
    const account = await createAccount(pair.first);
    const [present, absent] = [await createDevice(pair.first, account), await createDevice(pair.first, account)];
    const writer = await TestSocket.open(pair.first, present.token);
    expect(await writer.sendForAnswer(historyPush(randomBlob()))).toMatchObject({ result: "applied" });
    const listed = async (server: TestServer, deviceId: string): Promise<Message | undefined> => {
      const devices: Message[] = await server.json("GET", "/api/auth/devices", { token: account.token });
      return devices.find(({ id }) => id === deviceId);
    };
    expect(await listed(pair.first, present.id)).toMatchObject({ connected: true });
    expect(await listed(pair.first, absent.id)).toMatchObject({ connected: false, behind: 1 });
    while ((await listed(pair.second, present.id))?.["connected"] !== true); // until the first instance wrote it down
    await writer.close();
    expect(await listed(pair.first, present.id)).toMatchObject({ connected: false });
  });

  test("[W1] an instance killed with -9 in a burst: all it acknowledged reaches the other's devices within six seconds", async () => {
    const database = await createTestDatabase();
    const env = { ...(await databaseSettings(database.url)), JWT_SECRET };
    const [doomed, survivor] = await Promise.all([startChildServer(env), startChildServer(env)]);
    try {
      const account = await createAccount(connect(doomed.url));
      const writer = await TestSocket.open(doomed, (await createDevice(connect(doomed.url), account)).token);
      const reader = await TestSocket.open(
        survivor,
        (await createDevice(connect(survivor.url), account)).token,
        "&protocol=2",
      );
      const acknowledged = new Set<string>();
      const pushes = Array.from({ length: 400 }, () => historyPush(randomBlob(500)));
      for (const push of pushes) writer.send({ ...push, ref: push.id });
      while (acknowledged.size < 200) acknowledged.add((await writer.nextOf("ack"))["ref"]);
      await doomed.kill("SIGKILL");
      await writer.closed;
      for (const { type, ref } of writer.pending) if (type === "ack") acknowledged.add(ref);
      const everything = async () => {
        while (acknowledged.size > 0) acknowledged.delete((await reader.nextOf("history_new"))["id"]);
      };
      await within(everything(), "what was acknowledged", 6_000);
    } finally {
      await survivor.kill("SIGTERM");
      await database.drop();
    }
  }, 30_000);

  test("[R1] with every listener's connection killed in a burst nothing is missed", async () => {
    await using pair = await startPair();
    await using sql = new Bun.SQL(pair.databaseUrl, { max: 1 });
    const killing = setInterval(() => {
      void sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'listen%' AND datname = current_database()`.execute();
    }, 100);
    try {
      await race(pair, 50);
    } finally {
      clearInterval(killing);
    }
  }, 30_000);

  test("[R1] with the bus cut nothing is missed: it comes with the next poll", async () => {
    const cut: MemoryMedium = new Set();
    await using pair = await startPair([memoryBus(cut), memoryBus(new Set())]);
    await race(pair, 20);
  }, 30_000);
});

/** Writers on both instances, as fast as they are answered, and a reader on each that must see everything. */
async function race(pair: Pair, writesEach: number): Promise<void> {
  const account = await createAccount(pair.first);
  const servers = [pair.first, pair.second];
  const readers = await Promise.all(
    servers.map(async (server) => TestSocket.open(server, (await createDevice(server, account)).token, "&protocol=2")),
  );
  for (const reader of readers) await reader.nextOf("sync_complete");
  const written = new Set<string>();
  await Promise.all(
    [0, 1, 2, 3].map(async (index) => {
      const server = servers[index % 2] ?? pair.first;
      const writer = await TestSocket.open(server, (await createDevice(server, account)).token, "&protocol=2");
      for (let count = 0; count < writesEach; count += 1) {
        const push = historyPush(randomBlob());
        expect(await writer.sendForAnswer(push)).toMatchObject({ result: "applied" });
        written.add(push.id);
      }
      await writer.close();
    }),
  );
  for (const reader of readers) {
    const seen: Message[] = [];
    while (seen.length < written.size) seen.push(await reader.nextOf("history_new"));
    expect(new Set(seen.map((message) => message["id"]))).toEqual(written);
    const seqs = seen.map((message) => Number(message["seq"]));
    expect(seqs).toEqual(seqs.toSorted((left, right) => left - right));
    expect(new Set(seqs).size).toBe(seqs.length);
    await reader.close();
  }
}

/** Waits until the device's confirmed deliveries are written down. */
async function confirmedOn(server: TestServer, token: string, deviceId: string): Promise<void> {
  for (;;) {
    const devices: Message[] = await server.json("GET", "/api/auth/devices", { token });
    if (devices.find(({ id }) => id === deviceId)?.["behind"] === 0) return;
  }
}

interface Pair extends AsyncDisposable {
  databaseUrl: string;
  first: TestServer;
  second: TestServer;
}

async function startPair(buses: [Bus?, Bus?] = []): Promise<Pair> {
  const database = await createTestDatabase();
  const [first, second] = await Promise.all(
    [buses[0], buses[1]].map((bus) =>
      startTestServer({
        database: "postgres",
        databaseUrl: database.url,
        // Nothing is evicted in a race: who reads after an eviction hears only of that.
        env: { JWT_SECRET, HISTORY_LIMIT: String(RACE_CHANGES + 1_000) },
        adjust: (config) => ({ ...config, relay: { ...config.relay, presenceIntervalMs: 50 } }),
        ...(bus === undefined ? {} : { bus }),
      }),
    ),
  );
  if (first === undefined || second === undefined) throw new Error("an instance did not start");
  return {
    databaseUrl: database.url,
    first,
    second,
    async [Symbol.asyncDispose]() {
      await first[Symbol.asyncDispose]();
      await second[Symbol.asyncDispose]();
      await database.drop();
    },
  };
}
