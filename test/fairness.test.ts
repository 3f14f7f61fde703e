/** One account that writes all it can, and what another one notices of it. On both databases. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Config } from "../src/config.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  type Connection,
} from "./harness.ts";

// Attacks are many, and a machine may be busy with other tests.
setDefaultTimeout(30_000);

const items = (count: number) => Array.from({ length: count }, () => historyPush(randomBlob()));
const put = (server: Connection, token: string) =>
  server.request("PUT", "/api/sync/slots/1", { token, body: { encrypted_blob: randomBlob() } });
const push = (server: Connection, token: string, count: number) =>
  server.request("POST", "/api/sync/history", { token, body: items(count) });

function withWriter(writer: Partial<Config["writer"]>) {
  return (config: Config) => ({ ...config, writer: { ...config.writer, ...writer } });
}

describe.each([...DATABASES])("fairness on %s", (database) => {
  test("a full share of the queue is busy for its own account alone", async () => {
    const adjust = withWriter({
      batch: { items: 10, bytes: 1_000_000 },
      queue: { items: 400, bytes: 10_000_000 },
      accountQueue: { items: 50, bytes: 10_000_000 },
    });
    await using server = await startTestServer({ database, adjust });
    const [greedy, other] = [await createAccount(server), await createAccount(server)];
    let going = true;
    const statuses = new Set<number>();
    const flood = Array.from({ length: 20 }, async () => {
      while (going) statuses.add((await push(server, greedy.token, 100)).status);
    });
    const answers = [];
    for (let count = 0; count < 10 || !statuses.has(503); count += 1) {
      answers.push((await put(server, other.token)).status);
    }
    going = false;
    await Promise.all(flood);
    expect(new Set(answers)).toEqual(new Set([200]));
    // With room again, it is served like anybody.
    while ((await put(server, greedy.token)).status !== 200);
  });

  test("accounts take turns, and each one's own writes keep their order", async () => {
    const adjust = (config: Config) => ({
      ...withWriter({ batch: { items: 5, bytes: 1_000_000 } })(config),
      relay: { ...config.relay, socketInFlightHigh: 1_000 },
    });
    await using server = await startTestServer({ database, adjust });
    const greedy = await createAccount(server);
    const { token } = await createAccount(server);
    const socket = await TestSocket.open(server, (await createDevice(server, greedy)).token, "&protocol=2");
    await put(server, token);
    const refs: string[] = [];
    const begun = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<void>();
    socket.onMessage = ({ type, ref }) => {
      if (type !== "ack") return;
      refs.push(String(ref));
      begun.resolve();
      if (refs.length === 500) ended.resolve();
    };
    for (let count = 0; count < 500; count += 1) socket.send({ ...items(1)[0], ref: String(count) });
    await begun.promise;
    expect((await put(server, token)).status).toBe(200);
    const ahead = refs.length;
    await ended.promise;
    expect(ahead).toBeLessThan(250);
    expect(refs).toEqual(Array.from({ length: 500 }, (_, index) => String(index)));
    await socket.close();
  });

  test("a blob that is larger than a share of the queue is taken", async () => {
    const adjust = withWriter({ accountQueue: { items: 10, bytes: 100 } });
    await using server = await startTestServer({ database, adjust });
    const { token } = await createAccount(server);
    expect((await put(server, token)).status).toBe(200);
  });

  test("writes over REST have the rate of a socket's messages, a device's or an account's", async () => {
    const adjust = (config: Config) => ({
      ...config,
      limits: { ...config.limits, messagesPerDevice: { burst: 10, everyMs: 30_000 } },
    });
    await using server = await startTestServer({ database, env: { RATE_LIMITS: "on" }, adjust });
    const account = await createAccount(server);
    const [device, second] = [await createDevice(server, account), await createDevice(server, account)];
    expect((await push(server, device.token, 8)).status).toBe(201);
    const refused = await push(server, device.token, 3);
    expect([refused.status, await refused.json()]).toEqual([429, { error: expect.any(String), code: "rate_limited" }]);
    expect(Number(refused.headers.get("Retry-After"))).toBeGreaterThan(0);
    expect((await put(server, device.token)).status).toBe(200);
    expect((await server.request("DELETE", "/api/sync/slots/1", { token: device.token })).status).toBe(204);
    expect((await put(server, device.token)).status).toBe(429);
    const gone = `/api/sync/history/${crypto.randomUUID()}`;
    expect((await server.request("DELETE", gone, { token: device.token })).status).toBe(429);
    const socket = await TestSocket.open(server, device.token, "&protocol=2");
    expect(await socket.sendForAnswer(slotUpdate(1, randomBlob()))).toMatchObject({ code: "rate_limited" });
    await socket.close();
    // Reading goes on, and so does everybody else.
    expect(await server.json("GET", "/api/sync/history", { token: device.token })).toHaveLength(8);
    for (const { token } of [second, account, await createAccount(server)]) {
      expect((await put(server, token)).status).toBe(200);
    }
  });
});
