/** The reference client, as an app would use it: against the real server, over a network that can be bad. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { join } from "node:path";
import { Database } from "bun:sqlite";
import {
  ApiError,
  createApi,
  createBackoff,
  createMemoryStore,
  createSyncClient,
  type ChangeMessage,
  type Status,
  type SyncClient,
  type SyncClientOptions,
} from "../src/client/index.ts";
import { createOutbox } from "../src/client/outbox.ts";
import { createReplica } from "../src/client/replica.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  within,
  type DatabaseKind,
  type TestServer,
} from "./harness.ts";
import { startProxy, type Proxy } from "./proxy.ts";

describe.each([...DATABASES])("the reference client, on %s", (database) => {
  test("signs up, signs in, registers devices and removes them", async () => {
    await using server = await startTestServer({ database });
    const api = createApi(server.url);
    const email = `${crypto.randomUUID()}@example.org`;
    const { user_id } = await api.register(email, "test123");
    const account = await api.login(email, "test123");
    expect(account.user_id).toBe(user_id);
    const device = await api.createDevice(account.token, "Ana's phone", "android");
    expect(await api.devices(device.token)).toMatchObject([{ id: device.device_id, name: "Ana's phone" }]);
    expect(await api.isSignedIn((await api.refresh(device.token)).token)).toBe(true);
    await api.removeDevice(account.token, device.device_id);
    expect(await api.isSignedIn(device.token)).toBe(false);
    const failure = await api.login(email, "wrong-password").catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(ApiError);
    expect(failure).toMatchObject({ status: 401, code: "login_failed" });
  });

  test("two devices show the same slots and history", async () => {
    await using world = await createWorld(database);
    const [a, b] = [await world.client(), await world.client()];
    const [first, second, kept, dropped] = [randomBlob(), randomBlob(), randomBlob(), randomBlob()];
    expect(await a.client.setSlot(1, first)).toMatchObject({ result: "applied" });
    await b.until(() => slotOf(b.client, 1) === first);
    await b.client.setSlot(1, second);
    await b.client.setSlot(2, randomBlob());
    await b.client.clearSlot(2);
    await b.client.pushHistory({ blob: kept, contentHash: "kept" });
    await b.client.pushHistory({ blob: dropped, contentHash: "dropped", id: "7f7f7f7f-0000-4000-8000-000000000000" });
    expect(await a.client.pushHistory({ blob: kept, contentHash: "kept" })).toMatchObject({ result: "duplicate" });
    await b.client.deleteHistory("7f7f7f7f-0000-4000-8000-000000000000");
    await a.until(() => a.client.history().length === 1 && slotOf(a.client, 2) === null);
    for (const client of [a.client, b.client]) {
      expect(slotOf(client, 1)).toBe(second);
      expect(client.history()).toMatchObject([{ blob: kept, pending: false }]);
      expect(client.queued).toBe(0);
    }
  });

  test("what is written offline is shown at once, kept across a restart, and sent when the server is back", async () => {
    await using world = await createWorld(database);
    const store = createMemoryStore();
    const a = await world.client({ store });
    world.proxy.block();
    await a.until(() => a.client.status === "waiting");
    const [older, blob, item] = [randomBlob(), randomBlob(), randomBlob()];
    const superseded = a.client.setSlot(3, older);
    void a.client.setSlot(3, blob);
    void a.client.pushHistory({ blob: item, contentHash: "item" });
    expect(await superseded).toEqual({ result: "superseded" });
    expect(a.client.slots()).toMatchObject([{ slotNumber: 3, blob, pending: true }]);
    expect(a.client.history()).toMatchObject([{ blob: item, pending: true }]);
    expect(a.client.queued).toBe(2);
    await a.client.stop();

    world.proxy.unblock();
    const again = await world.client({ store, device: a.device });
    await again.until(() => again.client.queued === 0);
    expect(again.client.slots()).toMatchObject([{ slotNumber: 3, blob, pending: false }]);
    const { token } = world.account;
    expect(await world.server.json("GET", "/api/sync/slots", { token })).toMatchObject([{ encrypted_blob: blob }]);
    expect(await world.server.json("GET", "/api/sync/history", { token })).toMatchObject([{ encrypted_blob: item }]);
  });

  test("[W2] a write whose answer was lost is sent again as it was, and counts once", async () => {
    await using world = await createWorld(database);
    const a = await world.client();
    const watcher = await world.client({ direct: true });
    // What goes up arrives; nothing more comes down.
    world.proxy.cutAfter({ up: Number.POSITIVE_INFINITY, down: 0 });
    const blob = randomBlob();
    const outcome = a.client.setSlot(1, blob);
    await watcher.until(() => slotOf(watcher.client, 1) === blob);
    expect(await outcome).toMatchObject({ result: "duplicate" });
    const pushed = a.client.pushHistory({ blob: randomBlob(), contentHash: "once" });
    expect(await pushed).toMatchObject({ result: "applied" });
    expect(watcher.changes.filter(({ type }) => type === "slot_updated")).toHaveLength(1);
  });

  test("[P4] reconnects when the server restarts, and is told what it missed and no more", async () => {
    await using world = await createWorld(database);
    const told: string[] = [];
    const openSocket = (url: string, protocols: string[]) => {
      const socket = new WebSocket(url, protocols);
      socket.addEventListener("message", ({ data }) => told.push(JSON.parse(String(data)).type));
      return socket;
    };
    const a = await world.client();
    await a.client.setSlot(1, randomBlob());
    const b = await world.client({ openSocket });
    told.length = 0;
    await world.server.restart();
    const blob = randomBlob();
    expect(await a.client.setSlot(2, blob)).toMatchObject({ result: "applied" });
    await b.until(() => slotOf(b.client, 2) === blob);
    await b.until(() => b.client.status === "live");
    expect(told.filter((type) => type === "slot_updated")).toHaveLength(1);
    expect(b.statuses).toContain("waiting");
  });

  test("notices a connection that is silently dead, and leaves it", async () => {
    await using world = await createWorld(database);
    const a = await world.client({ silenceMs: 100, answerMs: 100 });
    world.proxy.swallow();
    const written = a.client.setSlot(1, randomBlob());
    expect(await within(written, "the write to arrive")).toMatchObject({ result: "applied" });
    expect(a.statuses).toContain("waiting");
  });

  test("finds out at once when it is woken", async () => {
    await using world = await createWorld(database);
    const a = await world.client({ answerMs: 2_000, reconnect: { firstMs: 600_000, maxMs: 600_000 } });
    world.proxy.swallow();
    a.client.wake();
    await a.until(() => a.client.status === "waiting");
    a.client.wake();
    await a.until(() => a.client.status === "live");
  });

  test("[P8] starts over when the server can't continue its cursor: what is gone there goes here", async () => {
    await using world = await createWorld(database);
    const a = await world.client();
    await a.client.setSlot(1, randomBlob());
    await a.client.setSlot(2, randomBlob());
    await a.client.pushHistory({ blob: randomBlob(), contentHash: "gone", id: crypto.randomUUID() });
    world.proxy.block();
    await a.until(() => a.client.status === "waiting");
    const { token } = world.account;
    const [item] = await world.server.json("GET", "/api/sync/history", { token });
    await world.server.json("DELETE", `/api/sync/history/${item.id}`, { token, status: 204 });
    await world.server.json("DELETE", "/api/sync/slots/2", { token, status: 204 });
    await drawNewEpoch(world.server);
    const mark = a.statuses.length;
    world.proxy.unblock();
    await a.until(() => a.client.status === "live" && a.statuses.length > mark);
    expect(a.client.history()).toEqual([]);
    expect(a.client.slots().map(({ slotNumber }) => slotNumber)).toEqual([1]);
    expect(await a.client.setSlot(2, randomBlob())).toMatchObject({ result: "applied" });
  });

  test("an item that is evicted before its push is answered leaves no ghost", async () => {
    await using world = await createWorld(database, { HISTORY_LIMIT: "2" });
    const a = await world.client();
    for (let count = 0; count < 2; count += 1) {
      await a.client.pushHistory({ blob: randomBlob(), contentHash: `newer ${count}`.replace(" ", "-") });
    }
    // Older than both, as of a clock that was wrong: the server takes it and lets it go in the same commit.
    const late = await world.client({ now: () => Date.now() - 3_600_000, freezeClock: true });
    const outcome = await late.client.pushHistory({ blob: randomBlob(), contentHash: "older" });
    expect(outcome).toMatchObject({ result: "applied" });
    await late.client.pushHistory({ blob: randomBlob(), contentHash: "older-too" });
    expect(late.client.history().map(({ contentHash }) => contentHash)).toEqual(["newer-1", "newer-0"]);
    expect(a.client.history()).toHaveLength(2);
  });

  test("a write the server refuses for good says why, and is not shown any more", async () => {
    await using world = await createWorld(database, { ACCOUNT_STORAGE_BYTES: "1000" });
    const a = await world.client();
    expect(await a.client.setSlot(11, randomBlob())).toMatchObject({ result: "refused", code: "bad_request" });
    expect(await a.client.setSlot(1, randomBlob(2_000))).toMatchObject({ result: "refused", code: "quota_exceeded" });
    expect(await a.client.deleteHistory(crypto.randomUUID())).toMatchObject({ result: "refused", code: "not_found" });
    expect(a.client.slots()).toEqual([]);
    expect(a.client.queued).toBe(0);
  });

  test("a clock that is wrong by ten minutes loses nothing and wins nothing", async () => {
    await using world = await createWorld(database);
    const ahead = await world.client({ now: () => Date.now() + 600_000 });
    const behind = await world.client({ now: () => Date.now() - 600_000 });
    for (let round = 0; round < 3; round += 1) {
      for (const [writer, reader] of [
        [ahead, behind],
        [behind, ahead],
      ] as const) {
        const blob = randomBlob();
        expect(await writer.client.setSlot(1, blob)).toMatchObject({ result: "applied" });
        await reader.until(() => slotOf(reader.client, 1) === blob);
      }
    }
  });

  test("[R6] stops when its device is removed, while connected and while away", async () => {
    await using world = await createWorld(database);
    const [here, away] = [await world.client({ direct: true }), await world.client()];
    world.proxy.block();
    await away.until(() => away.client.status === "waiting");
    const { token } = world.account;
    for (const { device } of [here, away]) {
      await world.server.json("DELETE", `/api/auth/device/${device.id}`, { token, status: 204 });
    }
    await here.until(() => here.client.status === "signed_out");
    world.proxy.unblock();
    await away.until(() => away.client.status === "signed_out");
  });

  test("understands a client of protocol 1", async () => {
    await using world = await createWorld(database);
    const a = await world.client();
    const old = await createDevice(world.server, world.account);
    const socket = await TestSocket.open(world.server, old.token);
    const update = slotUpdate(1, randomBlob());
    socket.send(update);
    await a.until(() => slotOf(a.client, 1) === update.encrypted_blob);
    const blob = randomBlob();
    await a.client.setSlot(1, blob);
    expect(await socket.next()).toMatchObject({ type: "slot_updated", slot_number: 1, encrypted_blob: blob });
    await socket.close();
  });
});

describe("the parts of the reference client", () => {
  test("it needs nothing but the platform: no module, no global of Bun or Node", async () => {
    const built = await Bun.build({
      entrypoints: [join(import.meta.dir, "../src/client/index.ts")],
      target: "browser",
    });
    expect(built.success).toBe(true);
    const code = await built.outputs[0]?.text();
    expect(code).not.toMatch(/\bBun\b|\bBuffer\b|\bprocess\b|\brequire\(|\bimport\s|node:/);
  });

  test("[P5] the replica ends the same wherever it was cut off and however often it is told again", () => {
    const act = fc.record({ item: fc.boolean(), which: fc.integer({ min: 1, max: 4 }), ends: fc.boolean() });
    fc.assert(
      fc.property(fc.array(act, { maxLength: 30 }), fc.array(fc.nat({ max: 30 })), (acts, cuts) => {
        const messages = toMessages(acts);
        const steady = createReplica();
        for (const message of messages) steady.apply(message);
        const cutOff = createReplica();
        for (const message of messages.slice(0, cuts[0] ?? 0)) cutOff.apply(message);
        for (const cursor of cuts) for (const message of messagesAfter(messages, cursor)) cutOff.apply(message);
        for (const message of messagesAfter(messages, 0)) cutOff.apply(message);
        expect(sorted(cutOff)).toEqual(sorted(steady));
        for (const message of messagesAfter(messages, 0)) expect(cutOff.apply(message)).toBe(false);
        // The answer to an own write may come later than what replaced it.
        for (const message of messages) if ("slot_number" in message) expect(cutOff.apply(message)).toBe(false);
        expect(sorted(cutOff)).toEqual(sorted(steady));
      }),
    );
  });

  test("the outbox is bounded, keeps order within a slot or item, and retries what was only busy", async () => {
    const outbox = createOutbox({ maxEntries: 3, maxInFlight: 2 });
    const write = (slot: number) => ({ type: "slot_clear", slot_number: slot, timestamp: 1 }) as const;
    const first = outbox.add(write(1));
    const [sent] = outbox.take();
    void outbox.add(write(1)); // waits for the first
    expect(outbox.take()).toEqual([]);
    void outbox.add(write(2));
    expect(outbox.take()).toHaveLength(1);
    expect(await outbox.add(write(3))).toMatchObject({ result: "refused", code: "outbox_full" });

    const ref = sent?.ref ?? "";
    expect(outbox.fail({ type: "error", code: "busy", message: "", ref, retry_after_ms: 7 })).toBe(7);
    expect(outbox.take().map((entry) => entry.ref)).toEqual([ref]);
    outbox.requeue();
    expect(outbox.take().map((entry) => entry.write.type === "slot_clear" && entry.write.slot_number)).toEqual([1, 2]);
    outbox.acknowledge({ type: "ack", ref, result: "applied", seq: 5 });
    expect(await first).toEqual({ result: "applied", seq: 5 });
    expect(outbox.take()).toHaveLength(1);
  });

  test("the backoff doubles up to its bound, at random, and starts again", () => {
    const backoff = createBackoff({ firstMs: 100, maxMs: 1_000, random: () => 1 });
    expect(Array.from({ length: 6 }, () => backoff.next())).toEqual([100, 200, 400, 800, 1_000, 1_000]);
    backoff.reset();
    expect(backoff.next()).toBe(100);
    const jittered = createBackoff({ firstMs: 100, random: () => 0.25 });
    expect([jittered.next(), jittered.next()]).toEqual([25, 50]);
  });
});

/** What live sockets hear: slots that are set or cleared, items that come and (at their next mention) go for good. */
function toMessages(acts: { item: boolean; which: number; ends: boolean }[]): ChangeMessage[] {
  const living = new Map<number, string>();
  return acts.map(({ item, which, ends }, index): ChangeMessage => {
    const seq = index + 1;
    if (!item) {
      const place = { slot_number: which, timestamp: seq, seq };
      if (ends) return { type: "slot_cleared", cleared_by: "", ...place };
      return { type: "slot_updated", encrypted_blob: String(seq), updated_by: "", ...place };
    }
    const id = living.get(which);
    if (id !== undefined) {
      living.delete(which);
      return { type: "history_deleted", id, seq };
    }
    living.set(which, `${which} ${seq}`);
    const content = { encrypted_blob: "", content_hash: "", device_id: "", created_at: "" };
    return { type: "history_new", id: `${which} ${seq}`, ...content, seq };
  });
}

/** What a catch-up tells of them: of each slot and item the last, when it is newer than the cursor. */
function messagesAfter(messages: ChangeMessage[], cursor: number): ChangeMessage[] {
  const last = new Map(messages.map((message) => ["id" in message ? message.id : message.slot_number, message]));
  return messages.filter((message) => message.seq > cursor && [...last.values()].includes(message));
}

function sorted(replica: ReturnType<typeof createReplica>) {
  return {
    slots: [...replica.slots.values()].toSorted((left, right) => left.slotNumber - right.slotNumber),
    history: [...replica.history.values()].toSorted((left, right) => left.seq - right.seq),
  };
}

interface WatchedClient {
  client: SyncClient;
  device: { id: string; token: string };
  statuses: Status[];
  changes: ChangeMessage[];
  /** Looks again whenever something happens to the client. */
  until(condition: () => boolean): Promise<void>;
}

interface ClientOptions extends Partial<SyncClientOptions> {
  /** Past the proxy. */
  direct?: boolean;
  device?: { id: string; token: string };
  /** The client believes its own clock whatever the server says. */
  freezeClock?: boolean;
}

/** An account, and clients that reach the server through a proxy. */
async function createWorld(database: DatabaseKind, env: Record<string, string> = {}) {
  const server = await startTestServer({ database, env });
  const account = await createAccount(server);
  const proxy: Proxy = await startProxy(() => Number(new URL(server.url).port));
  const clients: SyncClient[] = [];
  return {
    server,
    account,
    proxy,
    async client({
      direct = false,
      device,
      freezeClock = false,
      ...options
    }: ClientOptions = {}): Promise<WatchedClient> {
      const own = device ?? (await createDevice(server, account));
      const statuses: Status[] = [];
      const changes: ChangeMessage[] = [];
      let wake = () => {};
      const client = createSyncClient({
        url: direct ? server.url : proxy.url,
        token: own.token,
        reconnect: { firstMs: 10, maxMs: 100 },
        onStatus(status) {
          statuses.push(status);
          wake();
        },
        onChange(change) {
          if (change !== undefined) changes.push(change);
          wake();
        },
        ...(freezeClock && { openSocket: withoutServerTime }),
        ...options,
      });
      clients.push(client);
      const watched: WatchedClient = {
        client,
        device: own,
        statuses,
        changes,
        async until(condition) {
          const deadline = Date.now() + 10_000;
          while (!condition()) {
            await within(new Promise<void>((resolve) => (wake = resolve)), "the client", deadline - Date.now());
          }
        },
      };
      await client.start();
      await watched.until(() => client.status === "live");
      return watched;
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(clients.map((client) => client.stop()));
      await proxy[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

/** What `slots()` shows of one; undefined: nothing. */
function slotOf(client: SyncClient, slotNumber: number): string | null | undefined {
  return client.slots().find((slot) => slot.slotNumber === slotNumber)?.blob;
}

/** The server's clock is always an hour behind, too: so nothing sets this client's right. */
function withoutServerTime(url: string, protocols: string[]): WebSocket {
  const socket = new WebSocket(url, protocols);
  const own = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
  Object.defineProperty(socket, "onmessage", {
    set(listener: (event: { data: unknown }) => void) {
      own?.set?.call(socket, ({ data }: MessageEvent) => {
        const message: Record<string, unknown> = JSON.parse(String(data));
        if (message["type"] === "welcome") message["server_time"] = new Date(Date.now() - 3_600_000).toISOString();
        listener({ data: JSON.stringify(message) });
      });
    },
  });
  return socket;
}

/** As after a backup was restored. */
async function drawNewEpoch(server: TestServer): Promise<void> {
  await server.stop();
  if (server.databaseUrl === undefined) {
    using database = new Database(join(server.dataDir, "clipslot.db"), { strict: true });
    database.run("UPDATE server_meta SET value = '0123456789abcdef' WHERE key = 'epoch'");
  } else {
    await using sql = new Bun.SQL(server.databaseUrl);
    await sql`UPDATE server_meta SET value = '0123456789abcdef' WHERE key = 'epoch'`;
  }
  await server.restart();
}
