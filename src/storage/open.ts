import { join } from "node:path";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Storage } from "./storage.ts";

/**
 * Opens the database that the configuration names, with its schema up to date. Each adapter is loaded only when it is
 * used: a server on SQLite never reads the PostgreSQL driver.
 *
 * @param access a server has its SQLite file alone; a command works beside a server that may be running
 */
export async function openStorage(
  config: Config,
  access: "server" | "command" = "server",
  log?: Logger,
): Promise<Storage> {
  if (config.databaseUrl === undefined) {
    const { openSqliteStorage } = await import("./sqlite/storage.ts");
    return openSqliteStorage(sqlitePath(config), access);
  }
  const { openPostgresStorage } = await import("./postgres/storage.ts");
  return openPostgresStorage(
    {
      url: config.databaseUrl,
      directUrl: config.databaseDirectUrl ?? config.databaseUrl,
      pooled: config.databasePooled,
      poolSize: config.databasePoolSize,
      connectTimeoutSeconds: config.database.connectTimeoutSeconds,
      statementTimeoutMs: config.databaseTimeoutMs,
      queryTimeoutMs: config.databaseTimeoutMs + config.database.answerGraceMs,
    },
    log,
  );
}

/**
 * As openStorage, for a server that may be started before its database: waits for it, and says so.
 *
 * @param signal ends the waiting, with its reason
 */
export async function awaitStorage(config: Config, log: Logger, signal?: AbortSignal): Promise<Storage> {
  for (let pauseMs = config.database.retryMinMs; ; pauseMs = Math.min(pauseMs * 2, config.database.retryMaxMs)) {
    try {
      return await openStorage(config, "server", log);
    } catch (error) {
      if (!(error instanceof AppError && error.code === "unavailable") || config.databaseUrl === undefined) throw error;
      log.warn("the database can't be reached yet; waiting for it", { error });
      await Bun.sleep(pauseMs);
      signal?.throwIfAborted();
    }
  }
}

/** Where the SQLite database of this configuration is. */
export function sqlitePath(config: Pick<Config, "dataDir">): string {
  return join(config.dataDir, "clipslot.db");
}
