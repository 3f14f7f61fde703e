/** The two storages, each against the contract and both against each other. */
import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { openPostgresStorage } from "../src/storage/postgres/storage.ts";
import { openSqliteFile } from "../src/storage/sqlite/open.ts";
import { openSqliteStorage } from "../src/storage/sqlite/storage.ts";
import type { Storage } from "../src/storage/storage.ts";
import { databaseSettings } from "./pgbouncer.ts";
import { createTestDatabase } from "./postgres.ts";
import { storageContract } from "./storage-contract.ts";
import { type DrawnWrite, sharedView, someWrite, writeOf } from "./storage-contract/some-writes.ts";
import {
  allChanges,
  apply,
  applyOne,
  blobOfBytes,
  createAccount,
  deletion,
  newUser,
  NOW,
  postgresOptions,
  push,
  slot,
  uuid,
} from "./storage-fixtures.ts";

const START_DEADLINE_MS = 30_000;
const PROPERTY_DEADLINE_MS = 90_000;

// Several files are tested at once, and each statement waits for its turn on the disk.
setDefaultTimeout(30_000);

storageContract("sqlite", openSqlite);
storageContract("postgres", () => openPostgres());
// Without what a transaction pooler can't do: named prepared statements, settings of a session. With TEST_POOLER through one.
storageContract("postgres, as through a pooler", () => openPostgres({ pooled: true }));

describe("sqlite and postgres", () => {
  const opened: { storage: Storage; cleanup: () => Promise<void> }[] = [];
  beforeAll(async () => {
    opened.push(await openSqlite(), await openPostgres());
  }, START_DEADLINE_MS);
  afterAll(() => Promise.all(opened.map(({ cleanup }) => cleanup())));

  test(
    "the same batches have the same outcomes and the same end",
    async () => {
      const batches = fc.array(fc.array(someWrite, { minLength: 1, maxLength: 10 }), { minLength: 1, maxLength: 6 });
      const limits = fc.record({
        accountBytes: fc.integer({ min: 60, max: 400 }),
        historyItems: fc.integer({ min: 1, max: 3 }),
      });
      await fc.assert(
        fc.asyncProperty(batches, limits, async (drawn, limit) => {
          const ids = Array.from({ length: 4 }, uuid);
          const [sqlite, postgres] = await Promise.all(opened.map(({ storage }) => run(storage, drawn, ids, limit)));
          if (sqlite === undefined) throw new Error("two storages were opened");
          expect(postgres).toEqual(sqlite);
        }),
        { numRuns: 80 },
      );
    },
    PROPERTY_DEADLINE_MS,
  );

  async function run(
    storage: Storage,
    drawn: readonly DrawnWrite[][],
    ids: readonly string[],
    limits: { accountBytes: number; historyItems: number },
  ) {
    const account = await createAccount(storage);
    const seqs: number[] = [];
    const told: unknown[] = [];
    for (const batch of drawn) {
      const writes = batch.map((draw) => writeOf(draw, account, ids, seqs));
      const { outcomes, accounts } = await apply(storage, writes, limits);
      const changes = accounts.flatMap((progress) => progress.changes);
      seqs.push(...changes.map(({ seq }) => seq));
      const view = sharedView(account, seqs);
      told.push(outcomes.map(view.outcome), changes.map(view.change));
    }
    const changes = await allChanges(storage, account.userId);
    const summary = await storage.summary(account.userId);
    return { told, changes: changes.map(sharedView(account, seqs).change), summary: { ...summary, seq: 0 } };
  }
});

test("sqlite: a page of history that ends early leaves no statement open, which would hold the log back", async () => {
  const opened = await openSqlite();
  const { storage } = opened;
  const { userId, author } = await createAccount(storage);
  await apply(storage, [push(author), push(author)]);
  const { hasMore } = await storage.history(userId, { limit: 2, offset: 0, before: null, maxBytes: 1 });
  await apply(storage, [push(author)]);
  using beside = new Database(opened.path);
  expect([hasMore, beside.query("PRAGMA wal_checkpoint(TRUNCATE)").get()]).toEqual([
    true,
    { busy: 0, log: 0, checkpointed: 0 },
  ]);
  await opened.cleanup();
});

test("sqlite: what is looked for behind the blobs has an index, which is used however few accounts there were", async () => {
  const opened = await openSqlite();
  const { author } = await createAccount(opened.storage);
  await apply(opened.storage, [slot(author), slot(author, { slotNumber: 2 }), push(author), push(author)]);
  await opened.storage.close();
  using older = new Database(opened.path);
  // As a server of the version before left it.
  older.run(`DELETE FROM schema_migrations WHERE name = '0002_upkeep';
    DROP INDEX idx_synced_slots_seq; DROP INDEX idx_synced_history_expires; ANALYZE`);
  for (let start = 0; start < 3; start += 1) {
    const file = openSqliteFile(opened.path);
    const { client } = file;
    const planOf = (query: string) => JSON.stringify(client.query(`EXPLAIN QUERY PLAN ${query}`).all("user", 1));
    expect(planOf("SELECT length(encrypted_blob) FROM synced_slots WHERE user_id = ? AND seq > ?")).toContain(
      "USING INDEX idx_synced_slots_seq (user_id=? AND seq>?)",
    );
    expect(planOf("SELECT length(encrypted_blob) FROM synced_history WHERE user_id = ? AND seq > ?")).toContain(
      "USING INDEX idx_synced_history_seq (user_id=? AND seq>?)",
    );
    expect(
      planOf("SELECT id FROM synced_history WHERE user_id = ? AND expires_at <= ? ORDER BY expires_at LIMIT 9"),
    ).toContain("USING INDEX idx_synced_history_expires (user_id=? AND expires_at<?)");
    file.close();
  }
  await rm(dirname(opened.path), { recursive: true });
});

describe("sqlite: an account is deleted in steps", () => {
  test("others have their turn in between, and nobody the account", async () => {
    const opened = await openSqlite();
    const { storage } = opened;
    const { userId, author } = await largeAccount(storage);
    const email = (await storage.userById(userId))?.email ?? "";
    let deleted = false;
    const deleting = storage.deleteUser(userId).finally(() => (deleted = true));
    const seen = new Set<unknown>();
    let turns = 0;
    for (; !deleted; turns += 1) {
      await new Promise<void>((resolve) => void setImmediate(resolve));
      seen.add((await applyOne(storage, slot(author))).result);
      seen.add((await storage.userByEmail(email))?.id ?? "no such address");
      seen.add((await storage.deadAuthors([author])).length);
    }
    expect(await deleting).toBe(true);
    expect([...seen]).toEqual(["revoked", "no such address", 1]);
    expect(turns).toBeGreaterThan(2);
    await opened.cleanup();
  });

  test("when the server dies on the way, retention goes on with it", async () => {
    const opened = await openSqlite();
    const { userId, author } = await largeAccount(opened.storage);
    const email = (await opened.storage.userById(userId))?.email ?? "";
    const deleting = opened.storage.deleteUser(userId).catch(() => "died");
    await opened.storage.close();
    expect(await deleting).toBe("died");

    const storage = await openSqliteStorage(opened.path);
    expect((await storage.summary(userId))?.historyItems).toBeGreaterThan(0);
    expect(await applyOne(storage, slot(author))).toEqual({ result: "revoked" });
    expect(await storage.createUser(newUser({ email }))).toBe(true);
    const bounds = { tombstonesBefore: 0, tombstones: 1_000, limit: 500 };
    let steps = 0;
    for (let hasMore = true; hasMore; steps += 1) {
      const retained = await storage.retain(userId, NOW, bounds);
      expect(retained?.changes).toEqual([]);
      hasMore = retained?.hasMore ?? false;
    }
    expect(steps).toBeGreaterThan(2);
    expect(await storage.userById(userId)).toBeNull();
    await storage.createUser(newUser({ id: userId }));
    expect(await allChanges(storage, userId)).toEqual([]);
    await storage.close();
    await opened.cleanup();
  });

  /** Of more items, deletions and bytes than a step takes. */
  async function largeAccount(storage: Storage) {
    const account = await createAccount(storage);
    const { author } = account;
    const gone = Array.from({ length: 600 }, () => push(author));
    await apply(storage, gone);
    await apply(
      storage,
      gone.map(({ id }) => deletion(author, id)),
    );
    await apply(storage, [slot(author), ...Array.from({ length: 600 }, () => push(author))]);
    await apply(
      storage,
      Array.from({ length: 3 }, () => push(author, { blob: blobOfBytes(5_000_000) })),
    );
    return account;
  }
});

async function openSqlite() {
  const folder = await mkdtemp(join(tmpdir(), "clipslot-storage-"));
  const path = join(folder, "clipslot.db");
  const storage = await openSqliteStorage(path);
  return {
    storage,
    path,
    async cleanup() {
      await storage.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function openPostgres({ pooled = false } = {}) {
  const database = await createTestDatabase();
  const { DATABASE_URL: url = "" } = pooled ? await databaseSettings(database.url) : { DATABASE_URL: database.url };
  const storage = await openPostgresStorage(postgresOptions(url, { directUrl: database.url, pooled }));
  return {
    storage,
    async cleanup() {
      await storage.close();
      await database.drop();
    },
  };
}
