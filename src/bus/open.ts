import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import type { Bus } from "./bus.ts";
import { memoryBus } from "./memory.ts";

/** Opens the bus that fits the database: instances can only share PostgreSQL. */
export async function openBus(config: Config, log: Logger): Promise<Bus> {
  if (config.databaseDirectUrl === undefined) return memoryBus();
  const { postgresBus } = await import("./postgres.ts");
  return postgresBus({ url: config.databaseDirectUrl, config, log });
}
