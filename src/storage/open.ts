import { join } from "node:path";
import type { Config } from "../config.ts";
import type { Storage } from "./storage.ts";

/**
 * Opens the database that the configuration names, with its schema up to date. Each adapter is loaded only when it is
 * used: a server on SQLite never reads the PostgreSQL driver.
 *
 * @param access a server has its SQLite file alone; a command works beside a server that may be running
 */
export async function openStorage(config: Config, access: "server" | "command" = "server"): Promise<Storage> {
  if (config.databaseUrl === undefined) {
    const { openSqliteStorage } = await import("./sqlite/storage.ts");
    return openSqliteStorage(sqlitePath(config), access);
  }
  const { openPostgresStorage } = await import("./postgres/storage.ts");
  return openPostgresStorage({ url: config.databaseUrl });
}

/** Where the SQLite database of this configuration is. */
export function sqlitePath(config: Pick<Config, "dataDir">): string {
  return join(config.dataDir, "clipslot.db");
}
