/** The reference client, as an app would use it: against the real server, over a network that can be bad. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Database } from "bun:sqlite";
import {
  ApiError,
  createApi,
  createMemoryStore,
  createSyncClient,
  type ChangeMessage,
  type Status,
  type SyncClient,
  type SyncClientOptions,
} from "../src/client/index.ts";
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
import type { Config } from "../src/config.ts";
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
    const late = await world.client({ serverClockOffsetMs: -3_600_000 });
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

  test("[S4] a blob above the server's limit is refused at once, and is never sent", async () => {
    await using world = await createWorld(database);
    const a = await world.client();
    const refused = { result: "refused", code: "payload_too_large" };
    expect(await a.client.setSlot(1, randomBlob(3 << 20))).toMatchObject(refused);
    expect(await a.client.pushHistory({ blob: randomBlob(3 << 20), contentHash: "large" })).toMatchObject(refused);
    expect(await a.client.setSlot(1, randomBlob())).toMatchObject({ result: "applied" });
    expect(a.client.history()).toEqual([]);
    expect(a.statuses).not.toContain("waiting");
  });

  test("[S4] a blob that was queued before the limit was known is refused when it is", async () => {
    await using world = await createWorld(database);
    const { token } = await createDevice(world.server, world.account);
    const statuses: Status[] = [];
    const client = createSyncClient({ url: world.proxy.url, token, onStatus: (status) => statuses.push(status) });
    await client.start();
    const large = client.setSlot(1, randomBlob(3 << 20));
    const small = client.setSlot(2, randomBlob());
    expect(client.queued).toBe(2);
    expect(await within(large, "the large write")).toMatchObject({ result: "refused", code: "payload_too_large" });
    expect(await within(small, "the small write")).toMatchObject({ result: "applied" });
    expect(client.slots().map(({ slotNumber }) => slotNumber)).toEqual([2]);
    expect(statuses).not.toContain("waiting");
    await client.stop();
  });

  test("close code 1009: the message that was too large is refused, once, and the rest goes on", async () => {
    await using world = await createWorld(database);
    const a = await world.client();
    // No blob is too large here; what stands around it makes the frame so.
    const large = a.client.pushHistory({ blob: randomBlob(), contentHash: "x".repeat(2 << 20) });
    const others = [a.client.setSlot(1, randomBlob(700_000)), a.client.setSlot(2, randomBlob())];
    expect(await within(large, "the large write")).toMatchObject({ result: "refused", code: "payload_too_large" });
    for (const result of await within(Promise.all(others), "the others")) expect(result).toHaveProperty("seq");
    expect(await a.client.setSlot(3, randomBlob())).toMatchObject({ result: "applied" });
    expect(a.client.history()).toEqual([]);
    expect(a.statuses.filter((status) => status === "waiting")).toHaveLength(1);
  });

  test("[E3] [E4] who sends more than it may waits as long as the server says, and is not cut off", async () => {
    const adjust = (config: Config): Config => ({
      ...config,
      rateLimits: true,
      limits: {
        ...config.limits,
        messagesPerDevice: { burst: 20, everyMs: 10 },
        refusedMessagesPerDevice: { burst: 20, everyMs: 1_000 },
      },
    });
    await using world = await createWorld(database, {}, adjust);
    let resumeAt = 0;
    const tooEarly: number[] = [];
    const openSocket = (url: string, protocols: string[]) => {
      const socket = new WebSocket(url, protocols);
      socket.addEventListener("message", ({ data }) => {
        const waitMs = Number(JSON.parse(String(data)).retry_after_ms ?? 0);
        if (waitMs > 0) resumeAt = Math.max(resumeAt, performance.now() + waitMs);
      });
      const send = socket.send.bind(socket);
      socket.send = (text: string) => {
        const early = resumeAt - performance.now();
        if (early > 2) tooEarly.push(early);
        send(text);
      };
      return socket;
    };
    const a = await world.client({ openSocket });
    const written = Array.from({ length: 40 }, (_, index) =>
      a.client.pushHistory({ blob: randomBlob(), contentHash: `item-${index}` }),
    );
    for (const result of await Promise.all(written)) expect(result).toMatchObject({ result: "applied" });
    expect(resumeAt).toBeGreaterThan(0);
    expect(tooEarly).toEqual([]);
    expect(a.statuses).not.toContain("waiting");
  });

  test("goes on trying when the network swallows everything, the question about its token too", async () => {
    await using world = await createWorld(database);
    const a = await world.client({ silenceMs: 50, answerMs: 50 });
    world.proxy.blackHole();
    await a.until(() => a.statuses.filter((status) => status === "connecting").length >= 4);
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

  test("[P7] what was written upon the content that stands wins, though both clocks were wrong", async () => {
    await using world = await createWorld(database);
    const old = await createDevice(world.server, world.account);
    const socket = await TestSocket.open(world.server, old.token);
    const ahead = slotUpdate(1, randomBlob(), Date.now() + 50_000);
    socket.send(ahead);
    // So far ahead that its timestamps count as the server's now, which is less than what stands.
    const a = await world.client({ serverClockOffsetMs: 3_600_000 });
    await a.until(() => slotOf(a.client, 1) === ahead.encrypted_blob);
    expect(await a.client.setSlot(1, randomBlob())).toMatchObject({ result: "applied" });
    await socket.close();
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
  /** What the server's clock seems to be to the client, against the true time. */
  serverClockOffsetMs?: number;
}

/** An account, and clients that reach the server through a proxy. */
async function createWorld(
  database: DatabaseKind,
  env: Record<string, string> = {},
  adjust: (config: Config) => Config = (config) => config,
) {
  const server = await startTestServer({ database, env, adjust });
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
      serverClockOffsetMs,
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
        ...(serverClockOffsetMs !== undefined && { openSocket: socketsWithServerTime(serverClockOffsetMs) }),
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

/** Sockets whose `welcome` tells a wrong time. */
function socketsWithServerTime(offsetMs: number) {
  return (url: string, protocols: string[]): WebSocket => {
    const socket = new WebSocket(url, protocols);
    const own = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
    Object.defineProperty(socket, "onmessage", {
      set(listener: (event: { data: unknown }) => void) {
        own?.set?.call(socket, ({ data }: MessageEvent) => {
          const message: Record<string, unknown> = JSON.parse(String(data));
          if (message["type"] === "welcome") message["server_time"] = new Date(Date.now() + offsetMs).toISOString();
          listener({ data: JSON.stringify(message) });
        });
      },
    });
    return socket;
  };
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
