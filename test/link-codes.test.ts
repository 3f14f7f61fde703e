/** Link codes: a key goes from one device of an account to another, once, through a server that can't keep it. */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Config } from "../src/config.ts";
import { createAccount, createDevice, DATABASES, startTestServer, type Connection } from "./harness.ts";

const KEY = Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64");

async function createCode(server: Connection, token: string, key = KEY): Promise<string> {
  const { code } = await server.json("POST", "/api/auth/link-code", {
    token,
    body: { encrypted_key: key },
    status: 200,
  });
  return code;
}

function redeem(server: Connection, token: string, code: string) {
  return server.request("POST", "/api/auth/redeem-code", { token, body: { code } });
}

describe.each([...DATABASES])("link codes on %s", (database) => {
  test("six clear characters, good for one use, in either case", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    const code = await createCode(server, device.token);
    expect(code).toMatch(/^[2-9A-HJKMNP-Z]{6}$/);
    const redeemed = await redeem(server, account.token, ` ${code.toLowerCase()} `);
    expect([redeemed.status, await redeemed.json()]).toEqual([200, { encrypted_key: KEY }]);
    expect((await redeem(server, account.token, code)).status).toBe(404);
  });

  test("of many that race for it one gets the key", async () => {
    await using server = await startTestServer({ database });
    const { token } = await createAccount(server);
    const code = await createCode(server, token);
    const statuses = await Promise.all(
      Array.from({ length: 10 }, async () => (await redeem(server, token, code)).status),
    );
    expect(statuses.toSorted((a, b) => a - b)).toEqual([200, ...Array<number>(9).fill(404)]);
  });

  test("five wrong tries burn it; a new one works, and replaces the older", async () => {
    await using server = await startTestServer({ database });
    const { token } = await createAccount(server);
    const burnt = await createCode(server, token);
    for (let tries = 0; tries < 5; tries += 1) expect((await redeem(server, token, "000000")).status).toBe(404);
    expect((await redeem(server, token, burnt)).status).toBe(404);

    const older = await createCode(server, token);
    const newer = await createCode(server, token, "another");
    expect((await redeem(server, token, older)).status).toBe(404);
    expect(await (await redeem(server, token, newer)).json()).toEqual({ encrypted_key: "another" });
  });

  test("wrong, used, late, another account's and none at all get one answer", async () => {
    const briefly = (config: Config) =>
      ({ ...config, auth: { ...config.auth, linkCodeLifeMs: 0 } }) as unknown as Config;
    await using server = await startTestServer({ database });
    await using brief = await startTestServer({ database, adjust: briefly });
    const owner = await createAccount(server);
    const stranger = await createAccount(server);
    const late = await createAccount(brief);
    const code = await createCode(server, owner.token);
    const answers = [
      await redeem(server, stranger.token, code),
      await redeem(server, owner.token, "WRONG2"),
      await redeem(brief, late.token, await createCode(brief, late.token)),
    ];
    const bodies = await Promise.all(answers.map(async (answer) => [answer.status, await answer.json()]));
    expect(new Set(bodies.map((body) => JSON.stringify(body))).size).toBe(1);
    expect(bodies[0]?.[0]).toBe(404);
    expect((await redeem(server, owner.token, code)).status).toBe(200);
  });

  test("neither code nor key stand in the log or, readable, in the database", async () => {
    await using server = await startTestServer({ database });
    const { token } = await createAccount(server);
    const code = await createCode(server, token);
    await redeem(server, token, "000000");
    const log = server.logLines.join("");
    expect(log).toContain("/api/auth/redeem-code");
    for (const secret of [code, KEY]) expect(log).not.toContain(secret);
    if (server.databaseUrl === undefined) {
      const stored = Buffer.concat(readdirSync(server.dataDir).map((name) => readFileSync(join(server.dataDir, name))));
      for (const secret of [code, KEY, Buffer.from(KEY, "base64")]) expect(stored.includes(secret)).toBe(false);
    } else {
      await using sql = new Bun.SQL(server.databaseUrl);
      const rows = JSON.stringify(await sql`SELECT * FROM link_codes`);
      expect(rows).toContain("sealed_key");
      for (const secret of [code, KEY]) expect(rows).not.toContain(secret);
    }
  });
});
