/** The keys that a server with this secret signs with, for tests that forge. */
import { loadServerKeys, type ServerKeys } from "../src/accounts/secret.ts";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";

export function createServerKeys(secret: string): Promise<ServerKeys> {
  const silent = createLogger({ level: "error", format: "json", write: () => {} });
  return loadServerKeys(loadConfig({ JWT_SECRET: secret }), silent);
}
