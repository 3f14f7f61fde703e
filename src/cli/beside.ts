/** What a command that manages accounts works with: the database of a server that may be running beside it. */
import { existsSync } from "node:fs";
import { normaliseEmail } from "../accounts/accounts.ts";
import type { Revocation } from "../bus/bus.ts";
import { openBus } from "../bus/open.ts";
import { loadConfig, type Config } from "../config.ts";
import { createLogger } from "../log.ts";
import { openStorage, sqlitePath } from "../storage/open.ts";
import type { Storage, User } from "../storage/storage.ts";
import { OperatorError, type CommandIo } from "./command.ts";

export interface Beside extends AsyncDisposable {
  config: Config;
  storage: Storage;
  /** Tells running servers to close sockets ([R6]); on SQLite the server sees by itself that something changed. */
  tellRevoked: (revocation: Revocation) => void;
}

/**
 * @param mayCreate a database that is not there is made; otherwise it is a wrong DATA_DIR
 * @throws OperatorError, ConfigError, DatabaseInUseError
 */
export async function openBeside(io: CommandIo, { mayCreate = false } = {}): Promise<Beside> {
  const config = loadConfig(io.env);
  const path = sqlitePath(config);
  if (config.databaseUrl === undefined && !mayCreate && !existsSync(path)) {
    throw new OperatorError(`There is no database at ${path}. Set DATA_DIR or DATABASE_URL as the server has it.`);
  }
  await using opening = new AsyncDisposableStack();
  const storage = opening.adopt(await openStorage(config, "command"), (open) => open.close());
  const log = createLogger({ level: "warn", format: "text", write: (line) => io.complain(line.trimEnd()) });
  const bus = opening.adopt(await openBus(config, storage, log), (open) => open.close());
  const resources = opening.move();
  return {
    config,
    storage,
    tellRevoked: (revocation) => bus.tell({ kind: "revoked", ...revocation }),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

/** @throws OperatorError when there is no such account */
export async function findUser(storage: Storage, email: string): Promise<User> {
  const user = await storage.userByEmail(normaliseEmail(email));
  if (user === null) throw new OperatorError(`There is no account ${email}.`);
  return user;
}
