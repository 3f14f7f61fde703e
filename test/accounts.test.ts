/** Accounts and devices, through the front door, on both databases. */
import { describe, expect, test } from "bun:test";
import { availableParallelism } from "node:os";
import { normaliseEmail } from "../src/accounts/accounts.ts";
import type { Config } from "../src/config.ts";
import { createAccount, createDevice, DATABASES, randomBlob, startTestServer, TestSocket, within } from "./harness.ts";

describe.each([...DATABASES])("accounts on %s", (database) => {
  test("a race for one address gives one account", async () => {
    await using server = await startTestServer({ database });
    const body = { email: "race@example.org", password: "test123" };
    const answers = await Promise.all(
      Array.from({ length: 8 }, () => server.request("POST", "/api/auth/register", { body })),
    );
    expect(answers.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([201, ...Array<number>(7).fill(409)]);
  });

  test("an address is one address in any case, composition and surrounding space", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server, "Ana.Lopez@Example.org");
    const taken = { body: { email: "ana.lopez@example.ORG ", password: "other-password" }, status: 409 };
    expect(await server.json("POST", "/api/auth/register", taken)).toMatchObject({ code: "email_taken" });
    const login = { body: { email: " ANA.LOPEZ@EXAMPLE.ORG", password: account.password } };
    expect(await server.json("POST", "/api/auth/login", login)).toMatchObject({ user_id: account.userId });
    expect(normaliseEmail(" ANA@EXAMPLE.ORG ")).toBe(normaliseEmail("Ana@example.org"));
  });

  test("a wrong password and an unknown address get the same answer, which doesn't log the shipped client out", async () => {
    await using server = await startTestServer({ database });
    const { email } = await createAccount(server);
    const wrong = { body: { email, password: "wrong-password" }, status: 401 };
    const unknown = { body: { email: "nobody@example.org", password: "wrong-password" }, status: 401 };
    const answer = await server.json("POST", "/api/auth/login", wrong);
    expect(answer).toEqual({ error: expect.any(String), code: "login_failed" });
    expect(answer.error).not.toMatch(/401|unauthorized|expired/i);
    expect(await server.json("POST", "/api/auth/login", unknown)).toEqual(answer);
  });

  test("one password, typed on two keyboards, is one password; long ones count to the last byte", async () => {
    await using server = await startTestServer({ database });
    const composed = await createAccount(server, "umlaut@example.org", "pässwörd".normalize("NFC"));
    const decomposed = { email: composed.email, password: "pässwörd".normalize("NFD") };
    await server.json("POST", "/api/auth/login", { body: decomposed, status: 200 });

    const long = await createAccount(server, "long@example.org", `${"x".repeat(1023)}a`);
    await server.json("POST", "/api/auth/login", { body: { email: long.email, password: long.password }, status: 200 });
    const other = { email: long.email, password: `${"x".repeat(1023)}b` };
    await server.json("POST", "/api/auth/login", { body: other, status: 401 });
  });

  test("logins beyond the queue are told to come back; who is signed in notices nothing", async () => {
    const short = (config: Config) =>
      ({ ...config, auth: { ...config.auth, passwordQueueLength: 2 } }) as unknown as Config;
    await using server = await startTestServer({ database, adjust: short });
    const { email, password, token } = await createAccount(server);
    const flood = Array.from({ length: 2 * availableParallelism() + 8 }, () =>
      server.request("POST", "/api/auth/login", { body: { email, password } }),
    );
    await server.json("GET", "/api/sync/slots", { token, status: 200 });
    const answers = await Promise.all(flood);
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200, 503]));
    const busy = answers.find(({ status }) => status === 503);
    expect(Number(busy?.headers.get("Retry-After"))).toBeGreaterThan(0);
    expect(await busy?.json()).toMatchObject({ code: "busy" });
  });

  test("REGISTRATION=closed takes no new account", async () => {
    await using server = await startTestServer({ database, env: { REGISTRATION: "closed" } });
    const body = { email: "late@example.org", password: "test123" };
    const answer = await server.json("POST", "/api/auth/register", { body, status: 403 });
    expect(answer).toMatchObject({ code: "registration_closed" });
    expect(await server.json("GET", "/api/info")).toMatchObject({ registration: "closed" });
  });

  test("a password change ends every other token and socket, and answers with a fresh token of the caller's kind", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const [mine, other] = [await createDevice(server, account), await createDevice(server, account)];
    const sockets = [await TestSocket.open(server, mine.token), await TestSocket.open(server, other.token)];

    const wrong = { current_password: "not it", new_password: "test456" };
    await server.json("POST", "/api/auth/password", { token: mine.token, body: wrong, status: 403 });
    await server.json("GET", "/api/sync/slots", { token: other.token, status: 200 });

    const change = { current_password: account.password, new_password: "test456" };
    const { token } = await server.json("POST", "/api/auth/password", { token: mine.token, body: change });
    for (const dead of [account.token, mine.token, other.token]) {
      await server.json("GET", "/api/sync/slots", { token: dead, status: 401 });
    }
    for (const socket of sockets) expect((await within(socket.closed, "the socket to close", 1_000)).code).toBe(4401);

    const put = { token, body: { encrypted_blob: randomBlob() } };
    expect(await server.json("PUT", "/api/sync/slots/1", put)).toMatchObject({ updated_by: mine.id });
    expect(await server.json("GET", "/api/auth/devices", { token })).toMatchObject([{ id: mine.id }]);
    const login = (password: string, status: number) =>
      server.json("POST", "/api/auth/login", { body: { email: account.email, password }, status });
    await login(account.password, 401);
    await login("test456", 200);
  });

  test("a write that races a password change is written before it, or not at all", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    const change = { current_password: account.password, new_password: "test456" };
    let changed = false;
    const changing = server
      .json("POST", "/api/auth/password", { token: account.token, body: change })
      .then((answer) => {
        changed = true;
        return answer.token as string;
      });
    let last: string | undefined;
    while (!changed) {
      const blob = randomBlob();
      const response = await server.request("PUT", "/api/sync/slots/1", {
        token: device.token,
        body: { encrypted_blob: blob },
      });
      if (response.status === 200) last = blob;
      else expect(response.status).toBe(401);
    }
    const refused = { token: device.token, body: { encrypted_blob: randomBlob() }, status: 401 };
    await server.json("PUT", "/api/sync/slots/1", refused);
    const slots = await server.json("GET", "/api/sync/slots", { token: await changing });
    expect(slots.map((slot: { encrypted_blob: string }) => slot.encrypted_blob)).toEqual(
      last === undefined ? [] : [last],
    );
  });

  test("deleting an account needs its password, and leaves nothing of it", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    const socket = await TestSocket.open(server, device.token);
    await server.json("PUT", "/api/sync/slots/1", { token: device.token, body: { encrypted_blob: randomBlob() } });

    const wrong = { token: device.token, body: { password: "not it" }, status: 403 };
    expect(await server.json("DELETE", "/api/auth/account", wrong)).toMatchObject({ code: "wrong_password" });
    const right = { token: account.token, body: { password: account.password }, status: 204 };
    await server.json("DELETE", "/api/auth/account", right);
    expect((await within(socket.closed, "the socket to close", 1_000)).code).toBe(4401);
    for (const token of [account.token, device.token])
      await server.json("GET", "/api/sync/slots", { token, status: 401 });

    const again = await createAccount(server, account.email, account.password);
    expect(again.userId).not.toBe(account.userId);
    expect(await server.json("GET", "/api/sync/slots", { token: again.token })).toEqual([]);
  });

  test("an account tells its owner what it uses", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const blob = randomBlob();
    await server.json("PUT", "/api/sync/slots/1", { token: account.token, body: { encrypted_blob: blob } });
    expect(await server.json("GET", "/api/auth/account", { token: account.token })).toEqual({
      user_id: account.userId,
      email: account.email,
      created_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
      usage: { stored_bytes: Buffer.from(blob, "base64").length, history_items: 0 },
      limits: expect.objectContaining({ slots: 10, account_bytes: 256 * 1024 * 1024 }),
    });
  });
});

describe.each([...DATABASES])("devices on %s", (database) => {
  test("[R6] a device that is cut off is cut off at once: token, socket and list", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const [kept, lost] = [await createDevice(server, account, "kept"), await createDevice(server, account, "lost")];
    const socket = await TestSocket.open(server, lost.token);
    const connected = { id: lost.id, connected: true };
    expect(await server.json("GET", "/api/auth/devices", { token: kept.token })).toContainEqual(
      expect.objectContaining(connected),
    );

    await server.json("DELETE", `/api/auth/device/${lost.id.toUpperCase()}`, { token: kept.token, status: 204 });
    await server.json("GET", "/api/sync/slots", { token: lost.token, status: 401 });
    await server.json("PUT", "/api/sync/slots/1", {
      token: lost.token,
      body: { encrypted_blob: randomBlob() },
      status: 401,
    });
    expect((await within(socket.closed, "the socket to close", 1_000)).code).toBe(4401);
    expect(await server.json("GET", "/api/auth/devices", { token: kept.token })).toMatchObject([
      { id: kept.id, name: "kept" },
    ]);
    await server.json("DELETE", `/api/auth/device/${lost.id}`, { token: kept.token, status: 404 });
    await server.restart();
    await server.json("GET", "/api/sync/slots", { token: lost.token, status: 401 });
    await server.json("GET", "/api/sync/slots", { token: kept.token, status: 200 });
  });

  test("what a device wrote names it after it is gone", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    await server.json("PUT", "/api/sync/slots/1", { token: device.token, body: { encrypted_blob: randomBlob() } });
    await server.json("DELETE", `/api/auth/device/${device.id}`, { token: account.token, status: 204 });
    expect(await server.json("GET", "/api/sync/slots", { token: account.token })).toMatchObject([
      { updated_by: device.id },
    ]);
  });

  test("at the limit the device that was longest unseen makes room", async () => {
    const limit = (config: Config) =>
      ({ ...config, auth: { ...config.auth, devicesPerAccount: 2 } }) as unknown as Config;
    await using server = await startTestServer({ database, adjust: limit });
    const account = await createAccount(server);
    const devices = [
      await createDevice(server, account),
      await createDevice(server, account),
      await createDevice(server, account),
    ];
    const list = await server.json("GET", "/api/auth/devices", { token: account.token });
    expect(list).toMatchObject(devices.slice(1).map(({ id }) => ({ id })));
    await server.json("GET", "/api/sync/slots", { token: devices[0]?.token, status: 401 });
  });

  test("a device's token is refreshed for the same device; an account's is not", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    const { token } = await server.json("POST", "/api/auth/refresh", { token: device.token, status: 200 });
    expect(token).not.toBe(device.token);
    const put = { token, body: { encrypted_blob: randomBlob() } };
    expect(await server.json("PUT", "/api/sync/slots/1", put)).toMatchObject({ updated_by: device.id });
    await server.json("GET", "/api/sync/slots", { token: device.token, status: 200 });
    const refused = await server.json("POST", "/api/auth/refresh", { token: account.token, status: 401 });
    expect(refused).toMatchObject({ code: "device_required" });
  });

  test("nobody sees or touches another account's devices, slots and history", async () => {
    await using server = await startTestServer({ database });
    const owner = await createAccount(server);
    const device = await createDevice(server, owner);
    const item = { id: crypto.randomUUID(), encrypted_blob: randomBlob(), content_hash: "aa" };
    await server.json("PUT", "/api/sync/slots/1", { token: device.token, body: { encrypted_blob: randomBlob() } });
    await server.json("POST", "/api/sync/history", { token: device.token, body: item });

    const { token } = await createAccount(server);
    for (const path of ["/api/auth/devices", "/api/sync/slots", "/api/sync/history"]) {
      expect(await server.json("GET", path, { token })).toEqual([]);
    }
    for (const [path, absent] of [
      [`/api/auth/device/${device.id}`, `/api/auth/device/${crypto.randomUUID()}`],
      [`/api/sync/history/${item.id}`, `/api/sync/history/${crypto.randomUUID()}`],
    ] as const) {
      const foreign = await server.json("DELETE", path, { token, status: 404 });
      expect(await server.json("DELETE", absent, { token, status: 404 })).toEqual(foreign);
    }
    const sameId = { ...item, encrypted_blob: randomBlob() };
    await server.json("POST", "/api/sync/history", { token, body: sameId, status: 201 });
    expect(await server.json("GET", "/api/sync/history", { token: owner.token })).toMatchObject([item]);
  });
});
