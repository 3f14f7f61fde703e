/**
 * The bus of a server on SQLite. It is the only server on its database, so there is nobody to tell; but a command may
 * change the database beside it (remove an account, revoke a device) and has no way to tell either. So this looks
 * whether somebody else has written, which costs a microsecond, and then says that messages may have been missed.
 */
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import type { Storage } from "../storage/storage.ts";
import type { Bus } from "./bus.ts";

export interface SqliteBusOptions {
  storage: Pick<Storage, "foreignChanges">;
  config: Config;
  log: Logger;
}

/** Looks every `foreignChangesIntervalMs` from `listen` until `close`. */
export function sqliteBus({ storage, config, log }: SqliteBusOptions): Bus {
  let looking: Timer | undefined;

  return {
    tell() {},
    async listen(_onMessage, onGap) {
      let seen = await storage.foreignChanges();
      looking = setInterval(() => {
        storage.foreignChanges().then(
          (version) => {
            if (version === seen) return;
            seen = version;
            onGap();
          },
          (error: unknown) => log.debug("could not see whether a command changed the database", { error }),
        );
      }, config.bus.foreignChangesIntervalMs);
    },
    async close() {
      clearInterval(looking);
    },
  };
}
