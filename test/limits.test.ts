/** What may be asked how often, by whom; and that nobody else pays for it. Through the front door, on both databases. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Config } from "../src/config.ts";
import { createFailureLimiter, createMeter, createRateLimiter, createRecentKeys } from "../src/rate-limiter.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  within,
  type TestServer,
} from "./harness.ts";

// Attacks are many, and a machine may be busy with other tests.
setDefaultTimeout(30_000);

type Limits = Config["limits"];

/** Limits on, with smaller numbers; clients are told apart by X-Forwarded-For. */
function limited(database: "sqlite" | "postgres", changes: Partial<Limits> = {}) {
  return startTestServer({
    database,
    env: { RATE_LIMITS: "on", TRUSTED_PROXIES: "127.0.0.1,::1" },
    adjust: (config) => ({ ...config, limits: { ...config.limits, ...changes } }),
  });
}

function login(server: TestServer, email: string, password: string, address = "192.0.2.1") {
  const headers = { "X-Forwarded-For": address };
  return server.request("POST", "/api/auth/login", { body: { email, password }, headers });
}

/** @returns the seconds after which to come back */
async function expectLimited(response: Response): Promise<number> {
  expect([response.status, await response.json()]).toEqual([
    429,
    { error: expect.not.stringMatching(/401|unauthorized|expired/i), code: "rate_limited" },
  ]);
  const seconds = Number(response.headers.get("Retry-After"));
  expect(seconds).toBeGreaterThan(0);
  return seconds;
}

async function expectNoUpgrade(server: TestServer, token: string): Promise<void> {
  const headers = {
    Connection: "Upgrade",
    Upgrade: "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
  };
  await expectLimited(await server.request("GET", `/api/sync/ws?token=${token}`, { headers }));
}

describe.each([...DATABASES])("limits on %s", (database) => {
  test("guessing at one account grows slow, wherever it comes from; its owner's devices notice nothing", async () => {
    await using server = await limited(database);
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    await login(server, account.email, account.password, "192.0.2.200");
    for (let guess = 1; guess <= 6; guess += 1) {
      expect((await login(server, account.email, `guess ${guess}`, `192.0.2.${guess}`)).status).toBe(401);
    }
    await expectLimited(await login(server, account.email, account.password, "192.0.2.7"));
    await expectLimited(await login(server, account.email.toUpperCase(), "guess 8", "192.0.2.8"));

    await server.json("GET", "/api/sync/slots", { token: device.token, status: 200 });
    const socket = await TestSocket.open(server, device.token);
    await socket.close();
    await createDevice(server, account);
    // From where the owner has logged in before, guesses of others don't count.
    expect((await login(server, account.email, account.password, "192.0.2.200")).status).toBe(200);
    expect((await login(server, account.email, account.password, "192.0.2.7")).status).toBe(200);
  });

  test("an unknown address waits like a known one", async () => {
    const wrongPasswordsPerAccount = { free: 1, firstWaitMs: 40_000, maxWaitMs: 60_000, forgetAfterMs: 60_000 };
    await using server = await limited(database, { wrongPasswordsPerAccount });
    const { email } = await createAccount(server);
    const waits = async (address: string) => {
      await Promise.all([login(server, address, "guess"), login(server, address, "guess")]);
      return expectLimited(await login(server, address, "guess"));
    };
    expect([await waits(email), await waits("nobody@example.org")]).toEqual([40, 40]);
  });

  test("guesses that run side by side count each other", async () => {
    await using server = await limited(database);
    const { email } = await createAccount(server);
    const statuses = await Promise.all(
      Array.from({ length: 20 }, async (_, index) => (await login(server, email, "guess", `192.0.2.${index}`)).status),
    );
    expect(statuses.filter((status) => status === 401)).toHaveLength(6);
    expect(statuses.filter((status) => status === 429)).toHaveLength(14);
  });

  test("an address that guesses at many accounts grows slow, and a login of its own between guesses does not help", async () => {
    const wrongPasswordsPerAddress = { free: 3, firstWaitMs: 30_000, maxWaitMs: 60_000, forgetAfterMs: 60_000 };
    await using server = await limited(database, { wrongPasswordsPerAddress });
    const { email, password } = await createAccount(server);
    for (let guess = 0; guess < 4; guess += 1) {
      expect((await login(server, email, password)).status).toBe(200);
      expect((await login(server, `${guess}@example.org`, "guess")).status).toBe(401);
    }
    await expectLimited(await login(server, email, password));
    expect((await login(server, email, password, "192.0.2.2")).status).toBe(200);
  });

  test("logins, registrations, devices and link codes have a rate", async () => {
    const once = { burst: 1, everyMs: 30_000 };
    await using server = await limited(database, {
      loginsPerAddress: once,
      registrationsPerAddress: { ...once, burst: 2 },
      deviceRegistrationsPerAccount: once,
    });
    const [account, other] = [await createAccount(server), await createAccount(server)];
    const registration = { body: { email: "third@example.org", password: "test123" } };
    await expectLimited(await server.request("POST", "/api/auth/register", registration));
    const elsewhere = { ...registration, headers: { "X-Forwarded-For": "2001:db8::1" } };
    expect((await server.request("POST", "/api/auth/register", elsewhere)).status).toBe(201);
    const neighbour = { ...elsewhere, body: { ...registration.body, email: "fourth@example.org" } };
    expect((await server.request("POST", "/api/auth/register", neighbour)).status).toBe(201);
    await expectLimited(
      await server.request("POST", "/api/auth/register", {
        ...registration,
        headers: { "X-Forwarded-For": "2001:db8::ffff:1" },
      }),
    );

    expect((await login(server, account.email, account.password)).status).toBe(200);
    await expectLimited(await login(server, account.email, account.password));

    await createDevice(server, account);
    const device = { token: account.token, body: { name: "one more", device_type: "macos" } };
    await expectLimited(await server.request("POST", "/api/auth/device", device));
    await createDevice(server, other);

    const code = (token: string) =>
      server.request("POST", "/api/auth/link-code", { token, body: { encrypted_key: "key" } });
    for (let count = 0; count < 5; count += 1) expect((await code(account.token)).status).toBe(200);
    expect(await expectLimited(await code(account.token))).toBeWithin(600, 721);
    expect((await code(other.token)).status).toBe(200);
  });

  test("a stolen token is no way to guess the password", async () => {
    await using server = await limited(database);
    const account = await createAccount(server);
    const confirm = (password: string) =>
      server.request("DELETE", "/api/auth/account", { token: account.token, body: { password } });
    for (let guess = 0; guess < 6; guess += 1) expect((await confirm("guess")).status).toBe(403);
    await expectLimited(await confirm(account.password));
    await server.json("GET", "/api/sync/slots", { token: account.token, status: 200 });
    expect((await login(server, account.email, account.password)).status).toBe(200);
  });

  test("a socket that sends too fast is told so, and cut off with 1008 when it goes on", async () => {
    const messagesPerDevice = { burst: 10, everyMs: 30_000 };
    const refusedMessagesPerDevice = { burst: 10, everyMs: 30_000 };
    await using server = await limited(database, { messagesPerDevice, refusedMessagesPerDevice });
    const account = await createAccount(server);
    const [flooding, other] = [await createDevice(server, account), await createDevice(server, account)];
    const flood = await TestSocket.open(server, flooding.token, "&protocol=2");
    const calm = await TestSocket.open(server, other.token, "&protocol=2");
    for (let count = 0; count < 10; count += 1) {
      expect(await flood.sendForAnswer(historyPush(randomBlob()))).toMatchObject({ type: "ack", result: "applied" });
    }
    const refused = await flood.sendForAnswer(slotUpdate(1, randomBlob()));
    expect(refused).toMatchObject({ type: "error", code: "rate_limited" });
    expect(refused["retry_after_ms"]).toBeWithin(1, 30_001);
    for (let count = 0; count < 10; count += 1) flood.send("{}");
    expect((await within(flood.closed, "the socket to close", 2_000)).code).toBe(1008);
    await expectNoUpgrade(server, flooding.token);

    expect(await calm.sendForAnswer(slotUpdate(2, randomBlob()))).toMatchObject({ type: "ack", result: "applied" });
    expect(await server.json("GET", "/api/sync/slots", { token: other.token })).toMatchObject([{ slot_number: 2 }]);
    await calm.close();
  });

  test("large messages count for more", async () => {
    await using server = await limited(database, { messagesPerDevice: { burst: 10, everyMs: 30_000 } });
    const device = await createDevice(server, await createAccount(server));
    const socket = await TestSocket.open(server, device.token, "&protocol=2");
    const large = slotUpdate(1, Buffer.alloc(400_000).toString("base64"));
    expect(await socket.sendForAnswer(large)).toMatchObject({ type: "ack" });
    expect(await socket.sendForAnswer(large)).toMatchObject({ code: "rate_limited" });
    await socket.close();
  });

  test("a device's oldest socket makes room; an account's and an address's are refused before the upgrade", async () => {
    await using server = await limited(database, { socketsPerDevice: 2, socketsPerAccount: 3, socketsPerAddress: 4 });
    const account = await createAccount(server);
    const [device, second] = [await createDevice(server, account), await createDevice(server, account)];
    const stranger = await createDevice(server, await createAccount(server));
    const open = (token: string) => TestSocket.open(server, token, "&protocol=2");

    const [oldest, middle] = [await open(device.token), await open(device.token)];
    const newest = await open(device.token);
    expect((await within(oldest.closed, "the oldest to close", 2_000)).code).toBe(1008);
    const other = await open(second.token);
    await expectNoUpgrade(server, second.token);
    const strangers = await open(stranger.token);
    await expectNoUpgrade(server, stranger.token);
    await other.close();
    const again = await open(second.token);
    for (const socket of [middle, newest, strangers, again]) {
      expect(socket.isOpen).toBe(true);
      await socket.close();
    }
  });

  test("a person's first walk through it, and a client that sends 1,000 items at once, meet no limit", async () => {
    await using server = await startTestServer({ database, env: { RATE_LIMITS: "on" } });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    const socket = await TestSocket.open(server, device.token, "&protocol=2");
    for (let count = 0; count < 1_000; count += 1) socket.send(historyPush(randomBlob(1_000)));
    expect(await socket.sendForAnswer(slotUpdate(1, randomBlob()))).toMatchObject({ type: "ack", result: "applied" });
    expect(socket.received.filter(({ type }) => type === "error")).toEqual([]);
    await socket.close();
  });
});

describe("a limiter", () => {
  test("lets a burst pass, then one at its rate, and takes nothing when it refuses", () => {
    const meter = createMeter({ burst: 3, everyMs: 100 });
    expect([0, 0, 0].map(() => meter(1, 1_000))).toEqual([0, 0, 0]);
    expect([meter(1, 1_000), meter(1, 1_050), meter(2, 1_100)]).toEqual([100, 50, 100]);
    expect([meter(1, 1_100), meter(1, 1_100), meter(3, 9_000), meter(1, 9_000)]).toEqual([0, 100, 0, 100]);
  });

  test("remembers a fixed number of keys, and forgets the one that was quiet longest", () => {
    const keys = createRecentKeys<number>(1_000);
    for (let key = 0; key < 100_000; key += 1) {
      keys.getOr(String(key), () => key);
      keys.get("0");
    }
    expect([keys.size, keys.has("0"), keys.has("1"), keys.has("99999")]).toEqual([1_000, true, false, true]);

    const limiter = createRateLimiter({ burst: 1, everyMs: 60_000 }, 2);
    expect([limiter("a"), limiter("b"), limiter("c"), limiter("a")]).toEqual([0, 0, 0, 0]);
    expect(limiter("a")).toBeGreaterThan(0);
  });

  test("forgets failures after a time, and those that were taken back or forgiven", () => {
    const limiter = createFailureLimiter({ free: 1, firstWaitMs: 1_000, maxWaitMs: 4_000, forgetAfterMs: 0 }, 10);
    const strict = createFailureLimiter({ free: 1, firstWaitMs: 1_000, maxWaitMs: 4_000, forgetAfterMs: 9_000 }, 10);
    for (let failure = 0; failure < 2; failure += 1) strict.begin("key");
    expect(strict.waitMs("key")).toBeWithin(900, 1_001);
    for (let failure = 0; failure < 8; failure += 1) strict.begin("key");
    expect(strict.waitMs("key")).toBeWithin(3_900, 4_001);
    strict.forgive("key");
    expect(strict.waitMs("key")).toBe(0);
    for (let failure = 0; failure < 2; failure += 1) strict.begin("key");
    strict.takeBack("key");
    expect(strict.waitMs("key")).toBe(0);
    limiter.begin("key");
    expect(limiter.waitMs("key")).toBe(0);
  });
});
