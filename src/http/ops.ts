/** What operators and programs ask of the server itself. */
import type { Config } from "../config.ts";
import { publicLimits } from "../limits.ts";
import type { Storage } from "../storage/storage.ts";
import type { AppContext } from "./context.ts";

export interface OpsDependencies {
  config: Config;
  storage: Pick<Storage, "ping">;
  version: string;
}

/** Handlers of what asks for no token: is it alive, can it work, what is it. */
export function opsHandlers({ config, storage, version }: OpsDependencies) {
  const info = {
    name: "clipslot-server",
    version,
    protocols: [1, 2],
    registration: config.registration,
    limits: publicLimits(config),
  };
  return {
    alive: (c: AppContext) => c.json({ status: "ok" }),

    ready: async (c: AppContext) => {
      await storage.ping();
      return c.json({ status: "ready" });
    },

    info: (c: AppContext) => c.json(info),
  };
}
