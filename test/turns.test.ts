/**
 * Nothing long keeps the server from everything else. SQLite answers within the turn of the event loop it was asked in,
 * so each of these would without a turn between its pages; PostgreSQL can't.
 */
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { join } from "node:path";
import type { Config } from "../src/config.ts";
import {
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  startTestServer,
  TestSocket,
  type TestAccount,
  type TestServer,
} from "./harness.ts";

const ACCOUNTS = 3_000;
const ITEMS = 300;

/** A page an item: so many pages as a large account has. */
const smallPages = (config: Config): Config => ({
  ...config,
  sync: { ...config.sync, catchUpPageItems: 1 },
  http: { ...config.http, exportPageItems: 1 },
});

test("requests are answered while retention goes over many accounts", async () => {
  await using server = await startTestServer();
  const account = await createAccount(server);
  const { id } = await pushHistory(server, account);
  await server.stop();
  using database = new Database(join(server.dataDir, "clipslot.db"));
  database.run("UPDATE synced_history SET expires_at = 1");
  // Their ids come first, and with them their turn.
  database.run(
    `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
     INSERT INTO users (id, email, password_hash, created_at)
     SELECT format('00000000-0000-4000-8000-%012d', i), i || '@example.org', '', 0 FROM n`,
    [ACCOUNTS],
  );
  await server.restart(); // goes over all accounts at once
  expect((await server.request("GET", "/healthz")).status).toBe(200);
  const history = () => server.json("GET", "/api/sync/history", { token: account.token });
  expect(await history()).toMatchObject([{ id }]);
  while ((await history()).length > 0);
});

test("requests are answered while a device of protocol 2 is sent a large account", async () => {
  await using server = await startTestServer({ adjust: smallPages });
  const account = await createAccount(server);
  const device = await createDevice(server, account);
  await pushHistory(server, account, ITEMS);
  const socket = await TestSocket.open(server, device.token, "&protocol=2");
  await socket.nextOf("history_new");
  expect((await server.request("GET", "/healthz")).status).toBe(200);
  expect(socket.received.map(({ type }) => type)).not.toContain("sync_complete");
  await socket.nextOf("sync_complete");
  expect(socket.received.filter(({ type }) => type === "history_new")).toHaveLength(ITEMS);
});

test("requests are answered while a large account is exported", async () => {
  await using server = await startTestServer({ adjust: smallPages });
  const account = await createAccount(server);
  await pushHistory(server, account, ITEMS);
  let ended = false;
  const exported = server.json("GET", "/api/auth/export", { token: account.token }).finally(() => (ended = true));
  for (let answered = 0; answered < 2; answered += 1)
    expect((await server.request("GET", "/healthz")).status).toBe(200);
  expect(ended).toBe(false);
  expect((await exported).history).toHaveLength(ITEMS);
});

/** Pushes items in one request each hundred; the last one's id. */
async function pushHistory(server: TestServer, { token }: TestAccount, count = 1): Promise<{ id: string }> {
  let last = { id: "" };
  for (let pushed = 0; pushed < count; pushed += 100) {
    const body = Array.from({ length: Math.min(100, count - pushed) }, () => {
      const { type: _, ...item } = historyPush(randomBlob());
      return item;
    });
    await server.json("POST", "/api/sync/history", { token, body, status: 201 });
    last = body.at(-1) ?? last;
  }
  return last;
}
