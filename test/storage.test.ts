/** The two storages, each against the contract and both against each other. */
import { Database } from "bun:sqlite";
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { openPostgresStorage } from "../src/storage/postgres/storage.ts";
import { openSqliteStorage } from "../src/storage/sqlite/storage.ts";
import type { Storage } from "../src/storage/storage.ts";
import { createTestDatabase } from "./postgres.ts";
import { storageContract } from "./storage-contract.ts";
import { type DrawnWrite, sharedView, someWrite, writeOf } from "./storage-contract/some-writes.ts";
import { allChanges, apply, createAccount, postgresOptions, push, uuid } from "./storage-fixtures.ts";

const START_DEADLINE_MS = 30_000;
const PROPERTY_DEADLINE_MS = 90_000;

// Several files are tested at once, and each statement waits for its turn on the disk.
setDefaultTimeout(30_000);

storageContract("sqlite", openSqlite);
storageContract("postgres", () => openPostgres());
// Without what a transaction pooler can't do: named prepared statements, settings of a session.
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
  const storage = await openPostgresStorage(postgresOptions(database.url, { pooled }));
  return {
    storage,
    async cleanup() {
      await storage.close();
      await database.drop();
    },
  };
}
