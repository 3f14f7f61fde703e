/** Asks the local server how it is: for a container's HEALTHCHECK, and for scripts that wait for a start. */
import { loadConfig } from "../config.ts";
import type { Command } from "./command.ts";
import { readWords } from "./words.ts";

const TIMEOUT_MS = 3_000;
/** Where a server that listens everywhere is reached from its own machine. */
const LOOPBACK: Record<string, string> = { "0.0.0.0": "127.0.0.1", "::": "[::1]" };

export const command: Command = {
  summary: "Asks the local server whether it is well (exit code 0) or not (1).",
  usage: `Usage: clipslot-server healthcheck [--alive]

Asks /readyz at HOST and PORT: the server answers and reaches its database. With --alive it asks /healthz: the server
answers, whatever its database does.`,
  async run(args, io) {
    const { options } = readWords(args, [], { alive: { type: "boolean", default: false } });
    const { host, port } = loadConfig(io.env);
    const address = LOOPBACK[host] ?? (host.includes(":") ? `[${host}]` : host);
    const url = `http://${address}:${port}/${options.alive ? "healthz" : "readyz"}`;
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS), proxy: "" });
      if (response.ok) {
        io.print(options.alive ? "alive" : "ready");
        return 0;
      }
      io.complain(`${url} answers ${response.status}: ${(await response.text()).slice(0, 500)}`);
    } catch (error) {
      io.complain(`${url} does not answer: ${error instanceof Error ? error.message : String(error)}`);
    }
    return 1;
  },
};
