import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openPostgresStorage } from "../src/storage/postgres/storage.ts";
import { openSqliteStorage } from "../src/storage/sqlite/storage.ts";
import { createTestDatabase } from "./postgres.ts";
import { storageContract } from "./storage-contract.ts";
import { postgresOptions } from "./storage-fixtures.ts";

storageContract("sqlite", async () => {
  const folder = await mkdtemp(join(tmpdir(), "clipslot-storage-"));
  const storage = await openSqliteStorage(join(folder, "clipslot.db"));
  return {
    storage,
    async cleanup() {
      await storage.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
});

storageContract("postgres", () => openPostgres(false));

// What a transaction pooler can't do is left out: named prepared statements, settings of a session.
storageContract("postgres, as through a pooler", () => openPostgres(true));

async function openPostgres(pooled: boolean) {
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
