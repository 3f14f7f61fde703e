import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import type { Storage } from "../storage/storage.ts";
import type { Bus } from "./bus.ts";
import { sqliteBus } from "./sqlite.ts";

/** Opens the bus that fits the database: instances can only share PostgreSQL. */
export async function openBus(config: Config, storage: Storage, log: Logger): Promise<Bus> {
  if (config.databaseDirectUrl === undefined) return sqliteBus({ storage, config, log });
  const { postgresBus } = await import("./postgres.ts");
  return postgresBus({ url: config.databaseDirectUrl, config, log });
}
