/** Moving a whole server from SQLite to PostgreSQL and back: every row and every byte. */
import { Database } from "bun:sqlite";
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import postgres from "postgres";
import { runCommand, runWell, startChildServer } from "./child.ts";
import {
  connect,
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  slotUpdate,
  TestSocket,
  type Connection,
} from "./harness.ts";
import { createTestDatabase } from "./postgres.ts";

setDefaultTimeout(60_000);

const SECRET = { JWT_SECRET: "Zq8-vT3kW9xB5mN7cL2jH6fD4gS1aP0o" };
const TABLES = [
  "server_meta",
  "users",
  "devices",
  "synced_slots",
  "synced_history",
  "history_tombstones",
  "link_codes",
  "invites",
];

test("SQLite → PostgreSQL → SQLite: every row and byte is the same, and clients go on where they were", async () => {
  await using folder = temporaryFolder();
  await using database = await createTestDatabase();
  const [first, last] = [folder.file("first"), folder.file("last")];
  const server = await startChildServer({ DATA_DIR: first, HISTORY_LIMIT: "8", ...SECRET });
  const { token, cursor } = await fill(connect(server.url), first);
  await server.kill("SIGTERM");
  const before = dump(first);
  for (const table of TABLES) expect({ table, rows: before[table]?.length }).not.toEqual({ table, rows: 0 });

  const there = await runWell(["copy", "--from", `sqlite:${first}`, "--to", database.url]);
  expect(there).toContain("Copied and verified.");
  expect(there).toMatch(new RegExp(`^synced_history +${before["synced_history"]?.length}$`, "m"));

  const second = await startChildServer({ DATABASE_URL: database.url, DATA_DIR: folder.file("unused"), ...SECRET });
  const missed = await connect(second.url).json("GET", `/api/sync/changes?cursor=${cursor}`, { token });
  expect(missed.changes).toHaveLength(1);
  await second.kill("SIGTERM");

  await runWell(["copy", "--from", database.url, "--to", `sqlite:${last}`]);
  const after = dump(last);
  for (const table of TABLES) expect({ table, rows: after[table] }).toEqual({ table, rows: before[table] });
});

test("every table of both databases is copied", async () => {
  await using folder = temporaryFolder();
  await using database = await createTestDatabase();
  await runWell(["migrate"], { env: { DATA_DIR: folder.path } });
  await runWell(["migrate"], { env: { DATABASE_URL: database.url } });
  using sqlite = new Database(join(folder.path, "clipslot.db"));
  const inSqlite = sqlite.query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'table'").all();
  const sql = postgres(database.url, { max: 1 });
  const inPostgres = await sql<{ name: string }[]>`SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'`;
  await sql.end();
  const expected = [...TABLES, "schema_migrations"].sort();
  expect(inSqlite.map(({ name }) => name).sort()).toEqual(expected);
  expect(inPostgres.map(({ name }) => name).sort()).toEqual(expected);
});

test("a target that holds anything is refused, and stays as it is", async () => {
  await using folder = temporaryFolder();
  await using database = await createTestDatabase();
  const source = folder.file("source");
  await runWell(["user", "add", "ann@example.org"], { env: { DATA_DIR: source } });
  await runWell(["user", "add", "bob@example.org"], { env: { DATABASE_URL: database.url } });
  await runWell(["user", "invite"], { env: { DATA_DIR: folder.file("target") } });
  for (const target of [database.url, `sqlite:${folder.file("target")}`]) {
    const { code, output, complaints } = await runCommand(["copy", "--from", `sqlite:${source}`, "--to", target]);
    expect({ code, output }).toEqual({ code: 1, output: "" });
    expect(complaints).toContain("The target is not empty");
  }
  const list = await runWell(["user", "list"], { env: { DATABASE_URL: database.url } });
  expect(list).toContain("bob@example.org");
  expect(list).not.toContain("ann@example.org");
});

test("a server that runs on either end is in the way", async () => {
  await using folder = temporaryFolder();
  await using database = await createTestDatabase();
  const [onSqlite, onPostgres] = await Promise.all([
    startChildServer({ DATA_DIR: folder.file("running") }),
    startChildServer({ DATA_DIR: folder.file("unused"), DATABASE_URL: database.url }),
  ]);
  const running = `sqlite:${folder.file("running")}`;
  const free = `sqlite:${folder.file("free")}`;
  await runWell(["migrate"], { env: { DATA_DIR: folder.file("free") } });
  for (const [from, to, says] of [
    [running, free, "in use by another clipslot-server"],
    [free, running, "in use by another clipslot-server"],
    [database.url, free, "stop all of them first"],
    [free, database.url, "stop all of them first"],
  ] as const) {
    const { code, output, complaints } = await runCommand(["copy", "--from", from, "--to", to]);
    expect({ code, output }).toEqual({ code: 1, output: "" });
    expect(complaints).toContain(says);
  }
  await Promise.all([onSqlite.kill("SIGTERM"), onPostgres.kill("SIGTERM")]);
});

test("a copy that fails midway leaves the target empty", async () => {
  await using folder = temporaryFolder();
  await using database = await createTestDatabase();
  const source = folder.file("source");
  await runWell(["user", "add", "ann@example.org"], { env: { DATA_DIR: source } });
  {
    // A column that only PostgreSQL would take offence at: a hash it can't store as text.
    using sqlite = new Database(join(source, "clipslot.db"));
    sqlite.run("INSERT INTO invites (digest, created_at, expires_at) VALUES (char(65, 0, 66), 1, 2)");
  }
  const { code, output } = await runCommand(["copy", "--from", `sqlite:${source}`, "--to", database.url]);
  expect({ code, output }).toEqual({ code: 1, output: "" });
  expect(await runWell(["user", "list"], { env: { DATABASE_URL: database.url } })).not.toContain("ann@example.org");
});

test("a source that is not there: exit code 1, and nothing is made", async () => {
  await using folder = temporaryFolder();
  const { code, complaints } = await runCommand([
    "copy",
    "--from",
    `sqlite:${folder.file("none.db")}`,
    "--to",
    `sqlite:${folder.file("to.db")}`,
  ]);
  expect(code).toBe(1);
  expect(complaints).toBe(`There is no database at ${folder.file("none.db")}.\n`);
});

/** Accounts with all that an account can have; and the token and cursor of a device that has yet to hear one change. */
async function fill(server: Connection, dataDir: string) {
  const account = await createAccount(server, "ann@example.org");
  await createAccount(server);
  const [device, revoked] = [await createDevice(server, account, "Laptop 💻"), await createDevice(server, account)];
  const socket = await TestSocket.open(server, revoked.token, "&protocol=2");
  const blobs = [
    randomBlob(1),
    randomBlob(),
    randomBlob(100_000),
    Buffer.from([0, 255, 10, 13, 39, 92]).toString("base64"),
  ];
  for (const [index, blob] of blobs.entries()) await socket.sendForAnswer(slotUpdate(index + 1, blob));
  await socket.sendForAnswer({ type: "slot_clear", slot_number: 1, timestamp: Date.now() + 1 });
  for (let count = 0; count < 12; count += 1) await socket.sendForAnswer(historyPush(randomBlob(2_000)));
  await socket.sendForAnswer({
    ...historyPush(randomBlob()),
    expires_at: new Date(Date.now() + 86_400_000).toISOString(),
  });
  await server.json("DELETE", `/api/auth/device/${revoked.id}`, { token: device.token, status: 204 });
  await server.json("POST", "/api/auth/link-code", { token: device.token, body: { encrypted_key: "key" } });
  await runWell(["user", "invite"], { env: { DATA_DIR: dataDir } });
  const { cursor } = await server.json("GET", "/api/sync/changes?limit=1000", { token: device.token });
  await server.json("PUT", "/api/sync/slots/9", { token: account.token, body: { encrypted_blob: randomBlob() } });
  return { token: device.token, cursor: String(cursor) };
}

/** Every table, as SQLite holds it. */
function dump(dataDir: string): Record<string, unknown[]> {
  using database = new Database(join(dataDir, "clipslot.db"), { readonly: true });
  return Object.fromEntries(
    TABLES.map((table) => [table, database.query(`SELECT * FROM ${table} ORDER BY 1, 2`).all()]),
  );
}

function temporaryFolder() {
  const path = mkdtempSync(join(tmpdir(), "clipslot-copy-"));
  return {
    path,
    file: (name: string) => join(path, name),
    [Symbol.asyncDispose]: async () => rmSync(path, { recursive: true, force: true }),
  };
}
