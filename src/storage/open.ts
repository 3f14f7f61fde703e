import { join } from "node:path";
import type { Config } from "../config.ts";
import type { Storage } from "./storage.ts";

/**
 * Opens the database that the configuration names, with its schema up to date. Each adapter is loaded only when it is
 * used: a server on SQLite never reads the PostgreSQL driver.
 */
export async function openStorage(config: Config): Promise<Storage> {
  if (config.databaseUrl === undefined) {
    const { openSqliteStorage } = await import("./sqlite/storage.ts");
    return openSqliteStorage(join(config.dataDir, "clipslot.db"));
  }
  const { openPostgresStorage } = await import("./postgres/storage.ts");
  return openPostgresStorage({ url: config.databaseUrl });
}
