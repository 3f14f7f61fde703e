/** Dead tokens, races, and other people's things. On both databases. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { decodeJwt, SignJWT } from "jose";
import { createServerKeys } from "./server-keys.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  historyPush,
  randomBlob,
  slotUpdate,
  TestSocket,
  within,
  type TestServer,
} from "./harness.ts";
import { openRequest, setStage, type Stage } from "./hostile.ts";

// Attacks are many, and a machine may be busy with other tests.
setDefaultTimeout(30_000);

const JWT_SECRET = "b7Qm2vXz9LkR4tYp8WsD1fGh6JnC3aEe";

/** Every call that a token opens, with a body that would be right. */
const CALLS: readonly (readonly [method: string, path: string, body?: object])[] = [
  ["GET", "/api/auth/account"],
  ["GET", "/api/auth/devices"],
  ["GET", "/api/auth/export"],
  ["POST", "/api/auth/refresh"],
  ["POST", "/api/auth/device", { name: "thief", device_type: "linux" }],
  ["POST", "/api/auth/link-code", { encrypted_key: "key" }],
  ["POST", "/api/auth/redeem-code", { code: "ABCDEF" }],
  ["POST", "/api/auth/password", { current_password: "victim's password", new_password: "thief's password" }],
  ["DELETE", "/api/auth/account", { password: "victim's password" }],
  ["GET", "/api/sync/slots"],
  ["PUT", "/api/sync/slots/1", { encrypted_blob: randomBlob() }],
  ["DELETE", "/api/sync/slots/1"],
  ["GET", "/api/sync/history"],
  ["POST", "/api/sync/history", { id: crypto.randomUUID(), encrypted_blob: randomBlob(), content_hash: "thief" }],
  ["GET", "/api/sync/changes"],
];

async function expectDead(server: TestServer, token: string): Promise<void> {
  for (const [method, path, body] of CALLS) {
    const answer = await server.json(method, path, { token, body, status: 401 });
    expect([path, answer]).toEqual([path, { error: expect.stringContaining("expired"), code: "token_invalid" }]);
  }
  const opened = TestSocket.open(server, token).then(() => true);
  expect(await opened.catch(() => false)).toBe(false);
}

/** The victim's device is lost: deletes it, or changes the password, as the owner would. */
const ENDS: Record<string, (stage: Stage) => Promise<{ token: string; password: string }>> = {
  "the deletion of its device": async ({ server, victim }) => {
    await server.json("DELETE", `/api/auth/device/${victim.device.id}`, { token: victim.token, status: 204 });
    return victim;
  },
  "a change of password": async ({ server, victim }) => {
    const body = { current_password: victim.password, new_password: "another password" };
    const { token } = await server.json("POST", "/api/auth/password", { token: victim.token, body, status: 200 });
    return { token, password: "another password" };
  },
};

describe.each([...DATABASES])("hostile accounts on %s", (database) => {
  test("forged tokens open nothing, by header, query or subprotocol", async () => {
    await using stage = await setStage(database, { env: { JWT_SECRET } });
    const { server, victim } = stage;
    const key = (await createServerKeys(JWT_SECRET)).tokens;
    const claims = { ...decodeJwt(victim.device.token) };
    const part = (json: unknown) => Buffer.from(JSON.stringify(json)).toString("base64url");
    const sign = (changes: object, header = { alg: "HS256", typ: "JWT" }, by: CryptoKey | Uint8Array = key) =>
      new SignJWT({ ...claims, ...changes }).setProtectedHeader(header).sign(by);
    const [head = "", payload = "", signature = ""] = victim.device.token.split(".");
    const hs512 = await crypto.subtle.generateKey({ name: "HMAC", hash: "SHA-512" }, false, ["sign", "verify"]);
    const { privateKey } = (await crypto.subtle.generateKey("Ed25519", false, ["sign", "verify"])) as CryptoKeyPair;
    const forged: Record<string, string> = {
      "algorithm none": `${part({ alg: "none", typ: "JWT" })}.${payload}.`,
      "algorithm None": `${part({ alg: "None", typ: "JWT" })}.${payload}.${signature}`,
      "no algorithm": `${part({ typ: "JWT" })}.${payload}.${signature}`,
      HS512: await sign({}, { alg: "HS512", typ: "JWT" }, hs512),
      Ed25519: await sign({}, { alg: "EdDSA", typ: "JWT" }, privateKey),
      "the secret itself as key": await sign({}, undefined, new TextEncoder().encode(JWT_SECRET)),
      "an empty key": await sign({}, undefined, new Uint8Array(32)),
      "a key of its own in the header": `${part({ alg: "HS256", typ: "JWT", jwk: { kty: "oct", k: "AAAA" } })}.${payload}.${signature}`,
      "a critical extension": `${part({ alg: "HS256", typ: "JWT", crit: ["x"], x: 1 })}.${payload}.${signature}`,
      "another payload": `${head}.${part({ ...claims, sub: stage.attacker.userId })}.${signature}`,
      "no signature": `${head}.${payload}.`,
      "two parts": `${head}.${payload}`,
      "five parts": `${victim.device.token}.a.b`,
      "another audience": await sign({ aud: "clipslot-admin" }),
      "another issuer": await sign({ iss: "clipslot2" }),
      expired: await sign({ exp: Math.floor(Date.now() / 1000) - 1 }),
      "not yet": await sign({ nbf: Math.floor(Date.now() / 1000) + 3_600 }),
      "another device": await sign({ dev: crypto.randomUUID() }),
      "another account's device": await sign({ dev: stage.attacker.device.id }),
      "another account": await sign({ sub: stage.attacker.userId }),
      "a device's token as an account's, of another generation": await sign({
        kind: "account",
        dev: undefined,
        gen: 7,
      }),
    };
    for (const [name, token] of Object.entries(forged)) {
      const { status } = await server.request("GET", "/api/sync/slots", { token });
      const byQuery = await TestSocket.open(server, token).then(
        () => "opened",
        () => "refused",
      );
      expect([name, status, byQuery]).toEqual([name, 401, "refused"]);
    }
    await stage.expectUnharmed();
  });

  test.each(Object.keys(ENDS))("after %s the lost token opens nothing, whatever it asks", async (name) => {
    await using stage = await setStage(database);
    const { server, victim } = stage;
    const owner = await ENDS[name]?.(stage);
    await expectDead(server, victim.device.token);
    expect(await server.json("GET", "/api/sync/slots", { token: owner?.token })).toMatchObject([{ slot_number: 1 }]);
  });

  test("after the deletion of its account no token of it opens anything", async () => {
    await using stage = await setStage(database);
    const { server, attacker } = stage;
    await server.json("DELETE", "/api/auth/account", { token: attacker.token, body: { password: attacker.password } });
    for (const token of [attacker.token, attacker.device.token]) await expectDead(server, token);
    await stage.expectUnharmed();
  });

  test.each(Object.keys(ENDS))("%s while its requests are on their way: what comes later is refused", async (name) => {
    await using stage = await setStage(database);
    const { server, victim } = stage;
    const withBody = CALLS.filter(([, , body]) => body !== undefined);
    const requests = await Promise.all(
      withBody.map(([method, path, body]) =>
        openRequest(server, { method, path, token: victim.device.token }, JSON.stringify(body)),
      ),
    );
    const owner = await ENDS[name]?.(stage);
    const state = () =>
      Promise.all(
        ["/api/sync/slots", "/api/sync/history", "/api/auth/devices"].map((path) =>
          server.json("GET", path, { token: owner?.token }),
        ),
      );
    const before = await state();
    for (const [index, request] of requests.entries()) {
      expect([withBody[index]?.[1], (await request.finish()).status]).toEqual([withBody[index]?.[1], 401]);
    }
    expect(await state()).toEqual(before);
    const login = { body: { email: victim.email, password: owner?.password }, status: 200 };
    await server.json("POST", "/api/auth/login", login);
  });

  test.each(Object.keys(ENDS))(
    "%s amid a stream of frames and requests: none is taken after the answer",
    async (name) => {
      await using stage = await setStage(database, { env: { RATE_LIMITS: "off" } });
      const { server, victim } = stage;
      const socket = await TestSocket.open(server, victim.device.token);
      let streaming = true;
      const frames = (async () => {
        for (let count = 0; streaming && count < 2_000; count += 1) {
          socket.send(slotUpdate(3, randomBlob(), Date.now() + count));
          socket.send(historyPush(randomBlob()));
          await Bun.sleep(0);
        }
      })();
      const statuses: number[] = [];
      const requests = (async () => {
        while (streaming) {
          const put = { token: victim.device.token, body: { encrypted_blob: randomBlob() } };
          statuses.push((await server.request("PUT", "/api/sync/slots/4", put)).status);
        }
      })();
      const owner = await ENDS[name]?.(stage);
      const state = () =>
        Promise.all(
          ["slots", "history"].map((what) =>
            server.json("GET", `/api/sync/${what}?limit=1000`, { token: owner?.token }),
          ),
        );
      const atAnswer = await state();
      expect((await within(socket.closed, "the socket to close", 1_000)).code).toBe(4401);
      streaming = false;
      await Promise.all([frames, requests]);
      expect(await state()).toEqual(atAnswer);
      expect(statuses.filter((status) => status !== 200 && status !== 401)).toEqual([]);
    },
  );

  test("what another account has is not there: every resource, the same answer as for what never was", async () => {
    await using stage = await setStage(database);
    const { server, victim, attacker } = stage;
    const absent = crypto.randomUUID();
    for (const token of [attacker.token, attacker.device.token]) {
      for (const [theirs, nobodys] of [
        [`/api/auth/device/${victim.device.id}`, `/api/auth/device/${absent}`],
        [`/api/sync/history/${victim.historyId}`, `/api/sync/history/${absent}`],
      ] as const) {
        const answer = await server.json("DELETE", theirs, { token, status: 404 });
        expect(await server.json("DELETE", nobodys, { token, status: 404 })).toEqual(answer);
      }
      expect(await server.json("GET", "/api/sync/slots", { token })).toEqual([]);
      expect(await server.json("GET", "/api/sync/history", { token })).toEqual([]);
      expect(await server.json("GET", "/api/sync/changes", { token })).toMatchObject({ changes: [] });
      expect(JSON.stringify(await server.json("GET", "/api/auth/export", { token }))).not.toContain(victim.historyId);
      const devices: { id: string }[] = await server.json("GET", "/api/auth/devices", { token });
      expect(devices.map(({ id }) => id)).toEqual([attacker.device.id]);
    }
    const code = (
      await server.json("POST", "/api/auth/link-code", { token: victim.token, body: { encrypted_key: "k" } })
    ).code;
    const foreign = await server.json("POST", "/api/auth/redeem-code", {
      token: attacker.token,
      body: { code },
      status: 404,
    });
    const wrong = { token: attacker.token, body: { code: "ABCDEF" }, status: 404 };
    expect(await server.json("POST", "/api/auth/redeem-code", wrong)).toEqual(foreign);

    // Another account's cursor and page say where to go on in one's own data, and nothing of theirs.
    const { cursor } = await server.json("GET", "/api/sync/changes", { token: victim.token });
    const changes = await server.request("GET", `/api/sync/changes?cursor=${cursor}`, { token: attacker.token });
    expect(await changes.text()).not.toMatch(/"type"/);
    const socket = await TestSocket.open(server, attacker.device.token, "&protocol=2");
    await socket.nextOf("sync_complete");
    await server.json("PUT", "/api/sync/slots/8", { token: attacker.token, body: { encrypted_blob: randomBlob() } });
    expect(await socket.nextOf("slot_updated")).toMatchObject({ slot_number: 8 });
    expect(await socket.sendForAnswer({ type: "history_delete", id: victim.historyId })).toMatchObject({
      code: "not_found",
    });
    expect(socket.received.filter(({ type }) => type === "slot_updated")).toHaveLength(1);
    await socket.close();
    await stage.expectUnharmed();
  });

  test("races for one address, one code, one device and one item have one winner", async () => {
    await using stage = await setStage(database);
    const { server, attacker } = stage;
    const race = async (count: number, run: (index: number) => Promise<Response>) =>
      (await Promise.all(Array.from({ length: count }, (_, index) => run(index)))).map(({ status }) => status).sort();
    const { token } = attacker;
    const registration = { body: { email: "race@example.org", password: "test123" } };
    expect(await race(6, () => server.request("POST", "/api/auth/register", registration))).toEqual([
      201, 409, 409, 409, 409, 409,
    ]);
    const { code } = await server.json("POST", "/api/auth/link-code", { token, body: { encrypted_key: "k" } });
    expect(await race(4, () => server.request("POST", "/api/auth/redeem-code", { token, body: { code } }))).toEqual([
      200, 404, 404, 404,
    ]);
    const device = await createDevice(server, attacker);
    expect(await race(4, () => server.request("DELETE", `/api/auth/device/${device.id}`, { token }))).toEqual([
      204, 404, 404, 404,
    ]);
    const { type: _, ...item } = historyPush(randomBlob());
    expect(await race(4, () => server.request("POST", "/api/sync/history", { token, body: item }))).toEqual([
      200, 200, 200, 201,
    ]);
    expect(await race(4, () => server.request("DELETE", `/api/sync/history/${item.id}`, { token }))).toEqual([
      204, 404, 404, 404,
    ]);
    await stage.expectUnharmed();
  });

  test("an account that is deleted while it writes leaves nothing, and its address can be had again", async () => {
    await using stage = await setStage(database);
    const { server } = stage;
    const account = await createAccount(server, "gone@example.org");
    const device = await createDevice(server, account);
    const socket = await TestSocket.open(server, device.token);
    const writes = Array.from({ length: 50 }, async (_, index) => {
      socket.send(historyPush(randomBlob()));
      const put = { token: device.token, body: { encrypted_blob: randomBlob() } };
      return (await server.request("PUT", `/api/sync/slots/${1 + (index % 10)}`, put)).status;
    });
    let gone = false;
    const others = [
      ["POST", "/api/auth/link-code", { encrypted_key: "key" }],
      ["POST", "/api/auth/device", { name: "late", device_type: "linux" }],
      ["POST", "/api/auth/refresh", undefined],
      ["GET", "/api/auth/export", undefined],
    ] as const;
    const rest = others.map(async ([method, path, body]) => {
      while (!gone) {
        const { status } = await server.request(method, path, { token: device.token, body });
        expect([path, [200, 201, 401, 429].includes(status)]).toEqual([path, true]);
      }
    });
    const removal = { token: account.token, body: { password: account.password }, status: 204 };
    await server.json("DELETE", "/api/auth/account", removal);
    gone = true;
    await Promise.all(rest);
    expect((await within(socket.closed, "the socket to close", 1_000)).code).toBe(4401);
    for (const status of await Promise.all(writes)) expect([200, 401]).toContain(status);
    const again = await createAccount(server, "gone@example.org");
    expect(await server.json("GET", "/api/auth/export", { token: again.token })).toMatchObject({
      devices: [],
      slots: [],
      history: [],
    });
    await stage.expectUnharmed();
  });

  test("two changes of a password race: one wins, and the loser's token is dead", async () => {
    await using stage = await setStage(database);
    const { server, attacker } = stage;
    const change = async (password: string) => {
      const body = { current_password: attacker.password, new_password: password };
      const response = await server.request("POST", "/api/auth/password", { token: attacker.token, body });
      return { password, status: response.status };
    };
    const results = await Promise.all([change("the first one"), change("the second one"), change("the third one")]);
    const winners = results.filter(({ status }) => status === 200);
    expect(winners).toHaveLength(1);
    expect(results.filter(({ status }) => status === 401)).toHaveLength(2);
    const login = { body: { email: attacker.email, password: winners[0]?.password }, status: 200 };
    await server.json("POST", "/api/auth/login", login);
    await server.json("GET", "/api/sync/slots", { token: attacker.token, status: 401 });
    await stage.expectUnharmed();
  });
});
