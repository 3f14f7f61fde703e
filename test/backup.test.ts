/** Backup of a server that goes on working, and what clients see after a restore. */
import { Database } from "bun:sqlite";
import { expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCommand, runWell, startChildServer } from "./child.ts";
import {
  connect,
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  startTestServer,
  TestSocket,
} from "./harness.ts";
import { startLoad } from "./load.ts";

setDefaultTimeout(30_000);

test("[W1] a backup under 1,000 writes a second is whole and holds every write acknowledged before it began", async () => {
  await using folder = temporaryFolder();
  const server = await startChildServer({ DATA_DIR: folder.dataDir, HISTORY_LIMIT: "1000000" });
  const load = await startLoad(connect(server.url));
  await load.more(1_000);
  for (const name of ["first.db", "second.db"]) {
    const before = [...load.acknowledged];
    const waitsBefore = load.waits.length;
    const output = await runWell(["backup", folder.file(name)], { env: { DATA_DIR: folder.dataDir } });
    expect(output).toContain("jwt-secret");
    const waited = load.waits.slice(waitsBefore).reduce((longest, wait) => Math.max(longest, wait), 0);
    console.log(
      `${name}: ${load.waits.length - waitsBefore} writes meanwhile, the longest waited ${waited.toFixed(0)} ms`,
    );

    using copy = new Database(folder.file(name), { readonly: true });
    expect(copy.query("PRAGMA integrity_check").get()).toEqual({ integrity_check: "ok" });
    const ids = new Set(
      copy
        .query<{ id: string }, []>("SELECT id FROM synced_history")
        .all()
        .map(({ id }) => id),
    );
    expect(before.filter((id) => !ids.has(id))).toEqual([]);
    expect(statSync(folder.file(name)).mode & 0o777).toBe(0o600);
  }
  await load.stop();
  expect(await server.kill("SIGTERM")).toBe(0);
  expect(readdirSync(folder.path).sort()).toEqual(["data", "first.db", "second.db"]);
}, 60_000);

test("backup and restore: what came later is gone, and cursors from before the restore get resync_required", async () => {
  await using folder = temporaryFolder();
  const env = { DATA_DIR: folder.dataDir };
  await using server = await startTestServer({ env });
  const account = await createAccount(server);
  const device = await createDevice(server, account);
  const put = (blob: string) =>
    server.json("PUT", "/api/sync/slots/1", { token: device.token, body: { encrypted_blob: blob } });
  const [kept, lost] = [randomBlob(), randomBlob()];
  await put(kept);
  await runWell(["backup", folder.file("backup.db")], { env });
  await put(lost);
  const { cursor } = await server.json("GET", "/api/sync/changes", { token: device.token });

  const running = await runCommand(["restore", folder.file("backup.db")], { env });
  expect(running).toMatchObject({ code: 1, output: "" });
  expect(running.complaints).toContain("is in use by another clipslot-server");

  await server.stop();
  const output = await runWell(["restore", folder.file("backup.db")], { env });
  await server.restart();
  // The secret is not in the backup, and stays: nobody has to log in again.
  const [slot] = await server.json("GET", "/api/sync/slots", { token: device.token });
  expect(slot.encrypted_blob).toBe(kept);
  expect(
    await server.json("GET", `/api/sync/changes?cursor=${cursor}`, { token: device.token, status: 410 }),
  ).toMatchObject({
    code: "resync_required",
  });
  const socket = await TestSocket.open(server, device.token, `&protocol=2&cursor=${cursor}`);
  expect(await socket.nextOf("resync_required")).toEqual({ type: "resync_required", reason: "other_epoch" });
  expect(await socket.closed).toMatchObject({ code: 4410 });
  // The client that starts over has everything, and its new cursor holds.
  const again = await TestSocket.open(server, device.token, "&protocol=2");
  expect((await again.nextOf("slot_updated"))["encrypted_blob"]).toBe(kept);
  const complete = await again.nextOf("sync_complete");
  await server.json("GET", `/api/sync/changes?cursor=${complete["cursor"]}`, { token: device.token });

  const [, aside = ""] = /kept as (\S+);/.exec(output) ?? [];
  using old = new Database(aside, { readonly: true });
  expect(old.query("SELECT hex(encrypted_blob) AS blob FROM synced_slots").get()).toEqual({
    blob: Buffer.from(lost, "base64").toString("hex").toUpperCase(),
  });
});

test("restore into an empty folder makes the server anew", async () => {
  await using folder = temporaryFolder();
  await runWell(["user", "add", "ann@example.org"], { env: { DATA_DIR: folder.dataDir } });
  await runWell(["backup", folder.file("backup.db")], { env: { DATA_DIR: folder.dataDir } });
  const env = { DATA_DIR: folder.file("new") };
  expect(await runWell(["restore", folder.file("backup.db")], { env })).not.toContain("kept as");
  expect(await runWell(["user", "list"], { env })).toContain("ann@example.org");
  expect(readdirSync(folder.file("new")).sort()).toEqual(["clipslot.db", "clipslot.db.lock"]);
  expect(statSync(folder.file("new/clipslot.db")).mode & 0o777).toBe(0o600);
});

test("restore keeps what a killed server had in its journal aside, whole", async () => {
  await using folder = temporaryFolder();
  const env = { DATA_DIR: folder.dataDir };
  const server = await startChildServer(env);
  const account = await createAccount(connect(server.url));
  await runWell(["backup", folder.file("backup.db")], { env });
  const push = historyPush(randomBlob());
  await connect(server.url).json("POST", "/api/sync/history", { token: account.token, body: push });
  await server.kill("SIGKILL");
  expect(existsSync(`${folder.dataDir}/clipslot.db-wal`)).toBe(true);
  const output = await runWell(["restore", folder.file("backup.db")], { env });
  const [, aside = ""] = /kept as (\S+);/.exec(output) ?? [];
  using old = new Database(aside, { readonly: true });
  expect(old.query("SELECT id FROM synced_history").all()).toEqual([{ id: push.id }]);
  using now = new Database(`${folder.dataDir}/clipslot.db`, { readonly: true });
  expect(now.query("SELECT id FROM synced_history").all()).toEqual([]);
});

test("restore refuses what is damaged, foreign, newer, or a database in use, and changes nothing", async () => {
  await using folder = temporaryFolder();
  const env = { DATA_DIR: folder.dataDir };
  await runWell(["user", "add", "ann@example.org"], { env });
  await runWell(["backup", folder.file("good.db")], { env });
  const before = await Bun.file(`${folder.dataDir}/clipslot.db`).bytes();

  const bytes = await Bun.file(folder.file("good.db")).bytes();
  writeFileSync(folder.file("damaged.db"), bytes.fill(0xff, 4096 * 2, 4096 * 6));
  writeFileSync(folder.file("text.db"), "not a database");
  using foreign = new Database(folder.file("foreign.db"));
  foreign.run("CREATE TABLE users (id)");
  await runWell(["backup", folder.file("newer.db")], { env });
  using newer = new Database(folder.file("newer.db"));
  newer.run("INSERT INTO schema_migrations VALUES ('9999_later', 0)");
  await runWell(["backup", folder.file("used.db")], { env });
  writeFileSync(folder.file("used.db-wal"), "");

  for (const [name, says] of [
    ["damaged.db", "can't be used"],
    ["text.db", "file is not a database"],
    ["foreign.db", "no database of a ClipSlot server"],
    ["newer.db", "9999_later"],
    ["used.db", "a database in use"],
    ["none.db", "There is no file"],
  ] as const) {
    const { code, output, complaints } = await runCommand(["restore", folder.file(name)], { env });
    expect({ name, code, output }).toEqual({ name, code: 1, output: "" });
    expect(complaints).toContain(says);
    expect(complaints.trim().split("\n")).toHaveLength(1);
  }
  expect(Buffer.compare(await Bun.file(`${folder.dataDir}/clipslot.db`).bytes(), before)).toBe(0);
  expect(readdirSync(folder.dataDir).sort()).toEqual(["clipslot.db", "clipslot.db.lock"]);
});

test("backup overwrites nothing and leaves nothing behind when it fails", async () => {
  await using folder = temporaryFolder();
  const env = { DATA_DIR: folder.dataDir };
  await runWell(["user", "add", "ann@example.org"], { env });
  writeFileSync(folder.file("taken"), "precious");
  const taken = await runCommand(["backup", folder.file("taken")], { env });
  expect(taken).toMatchObject({ code: 1, output: "" });
  expect(taken.complaints).toContain("exists already");
  expect(await Bun.file(folder.file("taken")).text()).toBe("precious");
  const nowhere = await runCommand(["backup", folder.file("no/such/folder")], { env });
  expect(nowhere.code).toBe(1);
  expect(nowhere.complaints.trim().split("\n")).toHaveLength(1);
  expect(readdirSync(folder.path).sort()).toEqual(["data", "taken"]);
});

test("restore --new-epoch: cursors from before get resync_required", async () => {
  await using folder = temporaryFolder();
  const env = { DATA_DIR: folder.dataDir };
  await using server = await startTestServer({ env });
  const account = await createAccount(server);
  const { cursor } = await server.json("GET", "/api/sync/changes", { token: account.token });
  expect(await runCommand(["restore", "--new-epoch"], { env })).toMatchObject({ code: 1, output: "" });
  await server.stop();
  await runWell(["restore", "--new-epoch"], { env });
  await server.restart();
  await server.json("GET", `/api/sync/changes?cursor=${cursor}`, { token: account.token, status: 410 });
});

test("on PostgreSQL: backup and restore name its tools; restore --new-epoch wants the servers stopped", async () => {
  await using server = await startTestServer({ database: "postgres" });
  const env = { DATABASE_URL: server.databaseUrl };
  const backup = await runCommand(["backup", "file"], { env });
  expect(backup).toMatchObject({ code: 1, output: "" });
  expect(backup.complaints).toContain("pg_dump --format=custom --file=file");
  const restore = await runCommand(["restore", "file"], { env });
  expect(restore).toMatchObject({ code: 2, output: "" });
  expect(restore.complaints).toContain("pg_restore --clean");

  const account = await createAccount(server);
  const { cursor } = await server.json("GET", "/api/sync/changes", { token: account.token });
  const running = await runCommand(["restore", "--new-epoch"], { env });
  expect(running).toMatchObject({ code: 1, output: "" });
  expect(running.complaints).toContain("stop all of them first");
  await server.stop();
  await runWell(["restore", "--new-epoch"], { env });
  await server.restart();
  await server.json("GET", `/api/sync/changes?cursor=${cursor}`, { token: account.token, status: 410 });
});

/** A folder of a test's own, with room for a server's data beside other files. */
function temporaryFolder() {
  const path = mkdtempSync(join(tmpdir(), "clipslot-backup-"));
  chmodSync(path, 0o700);
  return {
    path,
    dataDir: join(path, "data"),
    file: (name: string) => join(path, name),
    [Symbol.asyncDispose]: async () => rmSync(path, { recursive: true, force: true }),
  };
}
