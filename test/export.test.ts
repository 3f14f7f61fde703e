/** Everything of an account as one download, in bounded memory; and registration by invite. On both databases. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { createInviteToken } from "../src/accounts/invites.ts";
import { loadConfig } from "../src/config.ts";
import { openStorage } from "../src/storage/open.ts";
import { createAccount, createDevice, DATABASES, randomBlob, startTestServer, type TestServer } from "./harness.ts";
import { readNoFurther } from "./stalled-reader.ts";

// Attacks are many, and a machine may be busy with other tests.
setDefaultTimeout(30_000);

async function push(server: TestServer, token: string, count: number, bytes = 48): Promise<string[]> {
  const items = Array.from({ length: count }, () => ({
    id: crypto.randomUUID(),
    encrypted_blob: randomBlob(bytes),
    content_hash: crypto.randomUUID(),
  }));
  for (const item of items) await server.json("POST", "/api/sync/history", { token, body: item, status: 201 });
  return items.map(({ id }) => id);
}

describe.each([...DATABASES])("an export on %s", (database) => {
  test("holds everything of the account and nothing of another, also across pages", async () => {
    const adjust = (config: ReturnType<typeof loadConfig>) => ({
      ...config,
      http: { ...config.http, exportPageItems: 3 },
    });
    await using server = await startTestServer({ database, adjust });
    const account = await createAccount(server);
    const device = await createDevice(server, account, 'the "old" \u2028 laptop');
    const stranger = await createDevice(server, await createAccount(server));
    await push(server, stranger.token, 2);
    const ids = await push(server, device.token, 10);
    await server.json("DELETE", `/api/sync/history/${ids[0]}`, { token: device.token });
    await server.json("PUT", "/api/sync/slots/4", { token: device.token, body: { encrypted_blob: randomBlob() } });
    await server.json("PUT", "/api/sync/slots/5", { token: device.token, body: { encrypted_blob: randomBlob() } });
    await server.json("DELETE", "/api/sync/slots/5", { token: device.token });

    const response = await server.request("GET", "/api/auth/export", { token: account.token });
    expect([response.status, response.headers.get("Content-Type"), response.headers.get("Cache-Control")]).toEqual([
      200,
      "application/json",
      "no-store",
    ]);
    expect(response.headers.get("Content-Disposition")).toMatch(
      /^attachment; filename="clipslot-export-\d{4}-\d\d-\d\d\.json"$/,
    );
    const exported: any = await response.json();
    const history = await server.json("GET", "/api/sync/history", { token: account.token });
    expect(exported).toEqual({
      format: "clipslot-export",
      version: 1,
      exported_at: expect.any(String),
      account: { user_id: account.userId, email: account.email, created_at: expect.any(String) },
      devices: [expect.objectContaining({ id: device.id, name: 'the "old" \u2028 laptop', device_type: "macos" })],
      slots: await server.json("GET", "/api/sync/slots", { token: account.token }),
      history: expect.arrayContaining(history),
    });
    expect(exported.history.map(({ id }: { id: string }) => id)).toEqual(ids.slice(1));
    expect(JSON.stringify(exported)).not.toMatch(/argon2|password/);
  });

  test("of an empty account is whole too; it needs a token, and has a rate", async () => {
    const adjust = (config: ReturnType<typeof loadConfig>) => ({
      ...config,
      limits: { ...config.limits, exportsPerAccount: { burst: 1, everyMs: 60_000 } },
    });
    await using server = await startTestServer({ database, env: { RATE_LIMITS: "on" }, adjust });
    const { token } = await createAccount(server);
    expect(await server.json("GET", "/api/auth/export", { token })).toMatchObject({
      devices: [],
      slots: [],
      history: [],
    });
    expect(await server.json("GET", "/api/auth/export", { token, status: 429 })).toMatchObject({
      code: "rate_limited",
    });
    await server.json("GET", "/api/auth/export", { status: 401 });
  });

  test("is read from the database as its reader goes on, not ahead of it", async () => {
    await using server = await startTestServer({ database });
    const { token } = await createAccount(server);
    const ids = await push(server, token, 60, 700_000);
    const reader = await readNoFurther(server, token, "/api/auth/export");
    // Read to its end meanwhile, this one proves that the other had the time.
    const whole = await server.json("GET", "/api/auth/export", { token });
    expect(whole.history).toHaveLength(60);
    for (const id of ids) await server.json("DELETE", `/api/sync/history/${id}`, { token });
    const { chunks, isWhole } = await reader.finish();
    expect(isWhole).toBe(true);
    // What the two sockets between them hold, and one page; of 56 MB or more.
    expect(JSON.parse(chunks).history.length).toBeWithin(1, 40);
  });
});

describe.each([...DATABASES])("registration by invite on %s", (database) => {
  const invited = () => startTestServer({ database, env: { REGISTRATION: "invite" } });

  /** As the command does, beside the server. */
  async function invite(server: TestServer, expiresAt = Date.now() + 60_000): Promise<string> {
    const config = loadConfig({ DATA_DIR: server.dataDir, DATABASE_URL: server.databaseUrl });
    const storage = await openStorage(config, "command");
    const { token, digest } = createInviteToken();
    await storage.createInvite({ digest, createdAt: Date.now(), expiresAt });
    await storage.close();
    return token;
  }

  const register = (server: TestServer, fields: object) =>
    server.request("POST", "/api/auth/register", { body: { password: "test123", ...fields } });

  test("needs one, takes it once, and says the same of every bad one", async () => {
    await using server = await invited();
    expect(await server.json("GET", "/api/info")).toMatchObject({ registration: "invite" });
    const token = await invite(server);
    const late = await invite(server, Date.now() - 1);
    expect((await register(server, { email: "first@example.org", invite: ` ${token}` })).status).toBe(201);

    const refusals = [
      await register(server, { email: "second@example.org" }),
      await register(server, { email: "second@example.org", invite: token }),
      await register(server, { email: "second@example.org", invite: late }),
      await register(server, { email: "second@example.org", invite: "nonsense" }),
      await register(server, { email: "second@example.org", invite: "" }),
      // Whom nobody invited does not learn who has an account.
      await register(server, { email: "first@example.org", invite: "nonsense" }),
    ];
    const answers = await Promise.all(
      refusals.map(async (answer) => JSON.stringify([answer.status, await answer.json()])),
    );
    expect(new Set(answers).size).toBe(1);
    expect(JSON.parse(answers[0] ?? "")).toEqual([403, { error: expect.any(String), code: "invite_invalid" }]);
  });

  test("an address that is taken does not use it up", async () => {
    await using server = await invited();
    const token = await invite(server);
    await register(server, { email: "first@example.org", invite: await invite(server) });
    expect((await register(server, { email: "first@example.org", invite: token })).status).toBe(409);
    expect((await register(server, { email: "second@example.org", invite: token })).status).toBe(201);
  });

  test("of many who race with one, one gets in", async () => {
    await using server = await invited();
    const token = await invite(server);
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, index) => register(server, { email: `${index}@example.org`, invite: token })),
    );
    expect(answers.map(({ status }) => status).sort()).toEqual([201, ...Array<number>(7).fill(403)]);
    expect(server.logLines.join("")).not.toContain(token);
  });
});
