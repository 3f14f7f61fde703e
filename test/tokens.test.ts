/** Tokens, the secret that signs them, and what decides whether one still counts. */
import { describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { decodeJwt, SignJWT } from "jose";
import { loadServerKeys } from "../src/accounts/secret.ts";
import { createSessions } from "../src/accounts/sessions.ts";
import type { Identity, Tokens } from "../src/accounts/tokens.ts";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import type { TokenState } from "../src/storage/storage.ts";
import { createAccount, createDevice, startTestServer } from "./harness.ts";

const JWT_SECRET = "b7Qm2vXz9LkR4tYp8WsD1fGh6JnC3aEe";
const silent = createLogger({ level: "error", format: "json", write: () => {} });

test("tokens carry what the contract says, and last as long as it says", async () => {
  await using server = await startTestServer();
  const account = await createAccount(server);
  const device = await createDevice(server, account);
  const common = { iss: "clipslot", aud: "clipslot-sync", sub: account.userId, jti: expect.any(String), gen: 0 };
  const lasting = (token: string) => (decodeJwt(token).exp ?? 0) - (decodeJwt(token).iat ?? 0);
  expect(decodeJwt(account.token)).toMatchObject({ ...common, kind: "account" });
  expect(decodeJwt(device.token)).toMatchObject({ ...common, kind: "device", dev: device.id });
  expect(lasting(account.token)).toBe(3_600);
  expect(lasting(device.token)).toBe(30 * 24 * 3_600);
});

test("[E1] a token that is wrong in any way gets 401 and the word that logs the shipped client out", async () => {
  await using server = await startTestServer({ env: { JWT_SECRET } });
  const account = await createAccount(server);
  const key = (await loadServerKeys(loadConfig({ JWT_SECRET }), silent)).tokens;
  const otherKey = (await loadServerKeys(loadConfig({ JWT_SECRET: `${JWT_SECRET}X` }), silent)).tokens;
  const claims = { ...decodeJwt(account.token) };
  const signed = (
    changes: Record<string, unknown>,
    header: { alg: string; typ?: string } = { alg: "HS256", typ: "JWT" },
    by = key,
  ) => new SignJWT({ ...claims, ...changes }).setProtectedHeader(header).sign(by);
  const part = (json: unknown) => Buffer.from(JSON.stringify(json)).toString("base64url");
  const hs384 = await crypto.subtle.generateKey({ name: "HMAC", hash: "SHA-384" }, false, ["sign", "verify"]);

  await server.json("GET", "/api/sync/slots", { token: await signed({}), status: 200 });
  const wrong: Record<string, string> = {
    "no token": "",
    nonsense: "nonsense",
    "three parts of nonsense": "a.b.c",
    "10,000 characters": "a".repeat(10_000),
    "cut off": account.token.slice(0, -3),
    "algorithm none": `${part({ alg: "none", typ: "JWT" })}.${part(claims)}.`,
    "another algorithm": await signed({}, { alg: "HS384", typ: "JWT" }, hs384),
    "another key": await signed({}, { alg: "HS256", typ: "JWT" }, otherKey),
    "another kind of JWT": await signed({}, { alg: "HS256", typ: "at+jwt" }),
    "another issuer": await signed({ iss: "someone" }),
    "another audience": await signed({ aud: "someone" }),
    expired: await signed({ exp: Math.floor(Date.now() / 1000) - 1 }),
    "without an end": await signed({ exp: undefined }),
    "without a kind": await signed({ kind: undefined }),
    "a device without its id": await signed({ kind: "device" }),
    "a device that never was": await signed({ kind: "device", dev: crypto.randomUUID() }),
    "an account that never was": await signed({ sub: crypto.randomUUID() }),
    "a subject that is no id": await signed({ sub: "' OR 1=1 --" }),
    "an older generation": await signed({ gen: -1 }),
    "a generation to come": await signed({ gen: 1 }),
  };
  for (const [name, token] of Object.entries(wrong)) {
    const response = await server.request("GET", "/api/sync/slots", { headers: { Authorization: `Bearer ${token}` } });
    const body = (await response.json()) as { error: string };
    expect([name, response.status, response.headers.get("WWW-Authenticate")]).toEqual([name, 401, "Bearer"]);
    expect(body.error).toMatch(/expired/);
  }
  const inQuery = await server.request("GET", `/api/sync/slots?token=${account.token}`);
  expect(inQuery.status).toBe(401);
});

describe("the server's secret", () => {
  const withDir = async (run: (dir: string) => Promise<void>) => {
    const dir = mkdtempSync(join(tmpdir(), "clipslot-secret-"));
    try {
      await run(dir);
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  };
  const load = (dir: string, log = silent) => loadServerKeys(loadConfig({ DATA_DIR: dir }), log);

  test("is drawn once: starts that race agree, and only its owner may read it", () =>
    withDir(async (dir) => {
      const keys = await Promise.all(Array.from({ length: 8 }, () => load(join(dir, "data"))));
      expect(new Set(keys.map(({ linkKeys }) => linkKeys.toString("hex"))).size).toBe(1);
      expect(readdirSync(join(dir, "data"))).toEqual(["jwt-secret"]);
      expect(statSync(join(dir, "data", "jwt-secret")).mode & 0o777).toBe(0o600);
    }));

  test("that others may read is said; one that is damaged ends the start", () =>
    withDir(async (dir) => {
      await load(dir);
      const path = join(dir, "jwt-secret");
      const lines: string[] = [];
      chmodSync(path, 0o644);
      await load(dir, createLogger({ level: "warn", format: "json", write: (line) => lines.push(line) }));
      expect(lines.join("")).toContain("chmod 600");
      expect(lines.join("")).not.toContain(readFileSync(path, "utf8").trim());
      writeFileSync(path, "");
      expect(await failure(load(dir))).toMatchObject({ message: expect.stringContaining("damaged") });
    }));

  test("from JWT_SECRET leaves no file, and its keys differ by purpose", () =>
    withDir(async (dir) => {
      const keys = await loadServerKeys(loadConfig({ DATA_DIR: dir, JWT_SECRET }), silent);
      expect(readdirSync(dir)).toEqual([]);
      expect(keys.linkKeys.equals(keys.linkCodes)).toBe(false);
    }));
});

describe("whether a token counts is asked of the database, and kept for a while", () => {
  const config = loadConfig({});
  const identity: Identity = { userId: "u", deviceId: "d", tokenGeneration: 0, expiresAt: Number.MAX_SAFE_INTEGER };
  const live: TokenState = { tokenGeneration: 0, device: { confirmedSeq: 0 } };
  const tokens = { verify: () => Promise.resolve(identity) } as unknown as Tokens;

  /** Sessions over a database whose answers the test gives, one by one. */
  function setUp() {
    const reads: PromiseWithResolvers<TokenState | null>[] = [];
    const storage = {
      tokenState() {
        const read = Promise.withResolvers<TokenState | null>();
        reads.push(read);
        return read.promise;
      },
    };
    return { reads, sessions: createSessions({ tokens, storage, config, onRevoked: () => {} }) };
  }

  test("[R6] a read that began before a revocation and ends after it lets nobody in", async () => {
    const { reads, sessions } = setUp();
    const early = sessions.authenticate("token");
    await Promise.resolve();
    sessions.end({ userId: "u", deviceId: "d", tokenGeneration: null });
    reads[0]?.resolve(live);
    await Bun.sleep(0);
    reads[1]?.resolve({ ...live, device: null });
    expect(await failure(early)).toMatchObject({ code: "token_invalid" });
    expect(await failure(sessions.authenticate("token"))).toMatchObject({ code: "token_invalid" });
    expect(reads).toHaveLength(2);
  });

  test("many who ask at once ask the database once", async () => {
    const { reads, sessions } = setUp();
    const asked = Array.from({ length: 10 }, () => sessions.authenticate("token"));
    await Promise.resolve();
    reads[0]?.resolve(live);
    expect(await Promise.all(asked)).toEqual(Array<Identity>(10).fill(identity));
    expect(reads).toHaveLength(1);
  });

  test("a database that is away is no verdict: the next request asks again", async () => {
    const { reads, sessions } = setUp();
    const first = sessions.authenticate("token");
    await Promise.resolve();
    reads[0]?.reject(new Error("away"));
    expect(await failure(first)).toMatchObject({ message: "away" });
    await Bun.sleep(0);
    const second = sessions.authenticate("token");
    await Promise.resolve();
    reads[1]?.resolve(live);
    expect(await second).toEqual(identity);
  });
});

/** What a promise rejects with; undefined when it doesn't. */
function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (error: unknown) => error,
  );
}
