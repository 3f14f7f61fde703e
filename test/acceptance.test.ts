/** What the server is accepted by, and the steps by which a person tries it, each through the front door, on both databases. */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import {
  createAccount,
  createDevice,
  DATABASES,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
} from "./harness.ts";

describe.each([...DATABASES])("the acceptance list on %s", (database) => {
  test("server starts and listens on the configured port", async () => {
    await using server = await startTestServer({ database });
    expect(await server.json("GET", "/healthz")).toEqual({ status: "ok" });
    expect(await server.json("GET", "/readyz")).toEqual({ status: "ready" });
  });

  test("registration and login work with bodies that curl -d sends, whatever the Content-Type", async () => {
    await using server = await startTestServer({ database });
    const body = '{"email":"test@test.com","password":"test123"}';
    const headers = { "Content-Type": "application/x-www-form-urlencoded" };
    const registered = await server.json("POST", "/api/auth/register", { body, headers, status: 201 });
    const loggedIn = await server.json("POST", "/api/auth/login", { body, headers, status: 200 });
    expect(registered).toEqual({ token: expect.any(String), user_id: expect.any(String) });
    expect(loggedIn).toEqual({ token: expect.any(String), user_id: registered.user_id });
  });

  test("device registration works", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const device = await createDevice(server, account, "Ana's laptop");
    const devices = await server.json("GET", "/api/auth/devices", { token: account.token });
    expect(devices).toMatchObject([{ id: device.id, name: "Ana's laptop", device_type: "macos" }]);
    await server.json("DELETE", `/api/auth/device/${device.id}`, { token: account.token, status: 204 });
    expect(await server.json("GET", "/api/auth/devices", { token: account.token })).toEqual([]);
  });

  test("encrypted slot blobs can be stored and retrieved", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const blob = randomBlob();
    await server.json("PUT", "/api/sync/slots/1", {
      token: account.token,
      body: { encrypted_blob: blob },
      status: 200,
    });
    const slots = await server.json("GET", "/api/sync/slots", { token: account.token });
    expect(slots).toMatchObject([{ slot_number: 1, encrypted_blob: blob, updated_by: null }]);
  });

  test("encrypted history items can be pushed, fetched and deleted", async () => {
    await using server = await startTestServer({ database });
    const device = await createDevice(server, await createAccount(server));
    const item = { id: crypto.randomUUID(), encrypted_blob: randomBlob(), content_hash: "a".repeat(64) };
    await server.json("POST", "/api/sync/history", { token: device.token, body: item, status: 201 });
    await server.json("POST", "/api/sync/history", { token: device.token, body: item, status: 200 });
    expect(await server.json("GET", "/api/sync/history", { token: device.token })).toMatchObject([
      { ...item, device_id: device.id },
    ]);
    await server.json("DELETE", `/api/sync/history/${item.id}`, { token: device.token, status: 204 });
    await server.json("DELETE", `/api/sync/history/${item.id}`, { token: device.token, status: 404 });
    expect(await server.json("GET", "/api/sync/history", { token: device.token })).toEqual([]);
  });

  test("a WebSocket authenticates: without a token that counts there is no upgrade", async () => {
    await using server = await startTestServer({ database });
    const device = await createDevice(server, await createAccount(server));
    await using _ = closing(await TestSocket.open(server, device.token));
    const headers = {
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    };
    for (const query of ["", "?token=", "?token=nonsense", `?token=${device.token}x`]) {
      const response = await server.request("GET", `/api/sync/ws${query}`, { headers });
      expect(response.status).toBe(401);
    }
  });

  test("[R1] slot updates and history pushes are relayed to the other devices, not back", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
    await using a = closing(await TestSocket.open(server, first.token));
    await using b = closing(await TestSocket.open(server, second.token));

    const update = slotUpdate(1, randomBlob());
    a.socket.send(update);
    expect(await b.socket.next()).toMatchObject({ ...update, type: "slot_updated", updated_by: first.id });

    const push = historyPush(randomBlob());
    b.socket.send(push);
    expect(await a.socket.next()).toMatchObject({ ...push, type: "history_new", device_id: second.id });

    await Promise.all([a.socket.settle(), b.socket.settle()]);
    expect(a.socket.received.map(({ type }) => type)).toEqual(["history_new", "error"]);
    expect(b.socket.received.map(({ type }) => type)).toEqual(["slot_updated", "error"]);
  });

  test("two devices that encrypt as the shipped client does understand each other, and the server keeps no plaintext", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
    await using a = closing(await TestSocket.open(server, first.token));
    await using b = closing(await TestSocket.open(server, second.token));
    const key = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
    const clip = "the launch code is swordfish-7741";

    a.socket.send(slotUpdate(3, await seal(key, clip)));
    a.socket.send(historyPush(await seal(key, clip)));
    const slot = await b.socket.next();
    const item = await b.socket.next();
    expect(await open(key, slot["encrypted_blob"])).toBe(clip);
    expect(await open(key, item["encrypted_blob"])).toBe(clip);

    const stored = await storedBytes(server.dataDir, server.databaseUrl);
    expect(stored.includes(Buffer.from(slot["encrypted_blob"], "base64"))).toBe(true);
    expect(stored.includes(Buffer.from(slot["encrypted_blob"]))).toBe(false);
    expect(stored.includes("swordfish")).toBe(false);
  });
});

/** Closes the socket at the end of the test. */
function closing(socket: TestSocket) {
  return { socket, [Symbol.asyncDispose]: () => socket.close() };
}

/** What the shipped client makes of a clip: `ENC:` + base64(nonce ‖ AES-256-GCM ciphertext), and base64 of that text. */
async function seal(key: CryptoKey, clip: string): Promise<string> {
  const nonce = crypto.getRandomValues(new Uint8Array(12));
  const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv: nonce }, key, new TextEncoder().encode(clip));
  return Buffer.from(`ENC:${Buffer.concat([nonce, new Uint8Array(sealed)]).toString("base64")}`).toString("base64");
}

async function open(key: CryptoKey, blob: string): Promise<string> {
  const bytes = Buffer.from(Buffer.from(blob, "base64").toString().slice("ENC:".length), "base64");
  const clip = await crypto.subtle.decrypt({ name: "AES-GCM", iv: bytes.subarray(0, 12) }, key, bytes.subarray(12));
  return new TextDecoder().decode(clip);
}

/** Everything that the database holds: the files of SQLite, every row of PostgreSQL. */
async function storedBytes(dataDir: string, databaseUrl: string | undefined): Promise<Buffer> {
  if (databaseUrl === undefined)
    return Buffer.concat(readdirSync(dataDir).map((name) => readFileSync(join(dataDir, name))));
  await using sql = new Bun.SQL(databaseUrl);
  const rows: unknown[] = [];
  for (const table of ["users", "devices", "synced_slots", "synced_history"])
    rows.push(...(await sql`SELECT * FROM ${sql(table)}`));
  const blobs = await sql`SELECT encrypted_blob FROM synced_slots UNION ALL SELECT encrypted_blob FROM synced_history`;
  return Buffer.concat([
    Buffer.from(JSON.stringify(rows)),
    ...blobs.map((row: { encrypted_blob: Uint8Array }) => row.encrypted_blob),
  ]);
}
