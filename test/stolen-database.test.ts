/** What stands in a stolen database or backup, and what doesn't. On both databases. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInviteToken } from "../src/accounts/invites.ts";
import { loadConfig } from "../src/config.ts";
import { openStorage } from "../src/storage/open.ts";
import { createAccount, createDevice, DATABASES, randomBlob, startTestServer, type TestServer } from "./harness.ts";

// Attacks are many, and a machine may be busy with other tests.
setDefaultTimeout(30_000);

test.each([...DATABASES])(
  "a stolen %s database holds no password, no token, no code, no key and no invite",
  async (database) => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server, "owner@example.org", "a password that is nowhere");
    const device = await createDevice(server, account, "a laptop with a name");
    const blob = randomBlob();
    await server.json("PUT", "/api/sync/slots/1", { token: device.token, body: { encrypted_blob: blob } });
    const masterKey = "raw-master-key-of-32-bytes-length";
    const link = { token: device.token, body: { encrypted_key: masterKey } };
    const { code } = await server.json("POST", "/api/auth/link-code", link);
    const { token: invite, digest } = createInviteToken();
    const storage = await openStorage(
      loadConfig({ DATA_DIR: server.dataDir, DATABASE_URL: server.databaseUrl }),
      "command",
    );
    await storage.createInvite({ digest, createdAt: Date.now(), expiresAt: Date.now() + 60_000 });
    await storage.close();

    const stolen = await everythingIn(server);
    // The search finds what is there: the address, the name of the device, the hash with its parameters, the ciphertext.
    for (const known of ["owner@example.org", "a laptop with a name", "$argon2id$v=19$m=19456,t=2,p=1$", digest]) {
      expect(stolen.includes(known)).toBe(true);
    }
    expect(stolen.includes(database === "sqlite" ? Buffer.from(blob, "base64") : blob)).toBe(true);
    for (const secret of [account.password, account.token, device.token, masterKey, ` ${code}`, `"${code}"`, invite]) {
      expect(stolen.includes(secret)).toBe(false);
    }
    const secretFile = readFileSync(join(server.dataDir, "jwt-secret"), "utf8").trim();
    expect(stolen.includes(secretFile)).toBe(false);
  },
);

/** The bytes of the database alone: the server's secret lies beside it, not in it. */
async function everythingIn({ dataDir, databaseUrl }: TestServer): Promise<Buffer> {
  if (databaseUrl === undefined) {
    const files = readdirSync(dataDir).filter((name) => name.startsWith("clipslot.db"));
    return Buffer.concat(files.map((name) => readFileSync(join(dataDir, name))));
  }
  await using sql = new Bun.SQL(databaseUrl);
  const tables: { name: string }[] =
    await sql`SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'`;
  const rows = await Promise.all(tables.map(({ name }) => sql`SELECT * FROM ${sql(name)}`));
  return Buffer.from(
    JSON.stringify(rows, (_, value: unknown) =>
      typeof value === "object" && value !== null && "type" in value && value.type === "Buffer" && "data" in value
        ? Buffer.from(value.data as number[]).toString("base64")
        : typeof value === "bigint"
          ? String(value)
          : value,
    ),
  );
}
