/** PostgreSQL behind a transaction pooler, as README.md sets it up. */
import { describe, expect, test } from "bun:test";
import {
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  type TestServer,
  type TestServerOptions,
} from "./harness.ts";
import { PGBOUNCER, startPgbouncer } from "./pgbouncer.ts";
import { createTestDatabase, startPostgres } from "./postgres.ts";

const JWT_SECRET = "0123456789abcdefghijklmnopqrstuvwxyz-pgbouncer";
const CLIPS = 200;
/** As for PostgreSQL itself: it serves again so soon. */
const BACK_WITHIN_MS = 5_000;

describe.skipIf(PGBOUNCER === null)("through PgBouncer in transaction mode", () => {
  test("a walk over every resource, then a burst over two instances that share four connections", async () => {
    await using database = await createDatabaseOfRole();
    await using pooler = await startPgbouncer(database.url);
    const options = serverOptions(pooler.through(database.url), database.url);
    await using first = await startTestServer(options);
    await using second = await startTestServer(options);

    const account = await createAccount(first);
    const [here, there] = [await createDevice(first, account), await createDevice(second, account)];
    expect(await second.json("GET", "/api/auth/devices", { token: account.token })).toHaveLength(2);
    const blob = randomBlob();
    await first.json("PUT", "/api/sync/slots/1", { token: here.token, body: { encrypted_blob: blob } });
    expect(await second.json("GET", "/api/sync/slots", { token: there.token })).toMatchObject([
      { slot_number: 1, encrypted_blob: blob, updated_by: here.id },
    ]);
    const item = historyPush(randomBlob());
    await first.json("POST", "/api/sync/history", { token: here.token, body: item, status: 201 });
    expect(await second.json("GET", "/api/sync/history", { token: there.token })).toMatchObject([{ id: item.id }]);
    await second.json("DELETE", `/api/sync/history/${item.id}`, { token: there.token, status: 204 });

    const writer = await TestSocket.open(first, here.token);
    const reader = await TestSocket.open(second, there.token);
    const update = slotUpdate(2, randomBlob());
    writer.send(update);
    expect(await reader.nextWhere((message) => message["slot_number"] === 2)).toMatchObject({
      encrypted_blob: update.encrypted_blob,
      updated_by: here.id,
    });
    const ids = new Set<string>();
    for (let count = 0; count < CLIPS; count += 1) {
      const push = historyPush(randomBlob());
      ids.add(push.id);
      writer.send(push);
    }
    while (ids.size > 0) expect(ids.delete((await reader.nextOf("history_new"))["id"])).toBe(true);
    await first.json("DELETE", `/api/auth/device/${there.id}`, { token: account.token, status: 204 });
    expect((await reader.closed).code).toBe(4401);
  });

  test("the statement_timeout of the role ends a statement, and the client is told 503", async () => {
    await using database = await createDatabaseOfRole("SET statement_timeout = '300ms'");
    await using pooler = await startPgbouncer(database.url);
    await using server = await startTestServer(serverOptions(pooler.through(database.url), database.url));
    await using blocked = await blockedWrite(server, database.url);
    expect((await blocked.answer).status).toBe(503);
    expect(await blocked.waitingStatements()).toBe(0);
    expect(server.logLines.join("\n")).not.toContain("a connection went silent");
    await blocked.release();
    expect((await blocked.again()).status).toBe(200);
  });

  test("without one, the server gives up on a statement by itself", async () => {
    await using database = await createDatabaseOfRole();
    await using pooler = await startPgbouncer(database.url);
    const env = { DATABASE_TIMEOUT_SECONDS: "0.3" };
    await using server = await startTestServer(serverOptions(pooler.through(database.url), database.url, env));
    await using blocked = await blockedWrite(server, database.url);
    expect((await blocked.answer).status).toBe(503);
    expect(server.logLines.join("\n")).toContain("a connection went silent");
    await blocked.release();
    expect((await blocked.again()).status).toBe(200);
  });

  test("a pooler that is gone is found again when it is back, and so is a database behind it", async () => {
    await using cluster = await startPostgres({ fsync: false });
    await using pooler = await startPgbouncer(cluster.url);
    const env = { DATABASE_TIMEOUT_SECONDS: "0.5" };
    await using server = await startTestServer(serverOptions(pooler.through(cluster.url), cluster.url, env));
    const { token } = await createAccount(server);
    const status = async () => (await server.request("GET", "/api/sync/slots", { token })).status;
    const outages = [
      { begin: () => cluster.stop("immediate"), end: () => cluster.restart() },
      { begin: () => cluster.freeze(), end: () => Promise.resolve(cluster.thaw()) },
      { begin: () => pooler.stop(), end: () => pooler.restart() },
    ];
    for (const { begin, end } of outages) {
      expect(await status()).toBe(200);
      await begin();
      expect(await status()).toBe(503);
      await end();
      const back = performance.now();
      while ((await status()) !== 200) await Bun.sleep(20);
      expect(performance.now() - back).toBeLessThan(BACK_WITHIN_MS);
    }
  });
});

/** The server reaches the database through the pooler, and past it only for LISTEN and migrations. */
function serverOptions(pooledUrl: string, databaseUrl: string, env: Record<string, string> = {}): TestServerOptions {
  const urls = { DATABASE_URL: pooledUrl, DATABASE_DIRECT_URL: databaseUrl };
  return { databaseUrl, env: { ...urls, JWT_SECRET, ...env } };
}

/** @param setting what ALTER ROLE says of the role that owns the database */
async function createDatabaseOfRole(setting?: string): Promise<{ url: string } & AsyncDisposable> {
  const database = await createTestDatabase();
  const url = new URL(database.url);
  const role = `${url.pathname.slice(1)}_role`;
  await using sql = new Bun.SQL(database.url, { max: 1 });
  await sql.unsafe(`CREATE ROLE ${role} LOGIN PASSWORD '${url.password}'`);
  await sql.unsafe(`ALTER DATABASE ${url.pathname.slice(1)} OWNER TO ${role}`);
  if (setting !== undefined) await sql.unsafe(`ALTER ROLE ${role} ${setting}`);
  url.username = role;
  return {
    url: url.href,
    async [Symbol.asyncDispose]() {
      await database.drop();
      const server = new URL(database.url);
      server.pathname = "postgres";
      await using afterwards = new Bun.SQL(server.href, { max: 1 });
      await afterwards.unsafe(`DROP ROLE ${role}`);
    },
  };
}

/** A PUT whose account somebody else has locked. */
async function blockedWrite(server: TestServer, databaseUrl: string) {
  const account = await createAccount(server);
  const put = () =>
    server.request("PUT", "/api/sync/slots/1", { token: account.token, body: { encrypted_blob: randomBlob() } });
  expect((await put()).status).toBe(200);
  const sql = new Bun.SQL(databaseUrl, { max: 1 });
  const locking = await sql.reserve();
  await locking`BEGIN`;
  await locking`SELECT seq FROM users WHERE id = ${account.userId} FOR UPDATE`;
  return {
    answer: put(),
    again: put,
    /** Of the write's; the retention sweep may wait for the same row. */
    async waitingStatements(): Promise<number> {
      const [row] = await locking`
        SELECT count(*)::int AS count FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%apply_writes%'`;
      return row.count;
    },
    release: () => locking`ROLLBACK`,
    [Symbol.asyncDispose]: () => sql.close({ timeout: 0 }),
  };
}
