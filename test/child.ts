/** The server as its own process, for tests that kill it. */
import { join } from "node:path";
import { within } from "./harness.ts";

export interface ChildServer {
  readonly url: string;
  readonly pid: number;
  /** @returns the exit code, or null when a signal ended it */
  kill(signal: "SIGKILL" | "SIGTERM" | "SIGINT"): Promise<number | null>;
  /** Standard output so far. */
  output(): string;
}

/** Starts `src/main.ts` and waits until it says where it listens. */
export async function startChildServer(env: Record<string, string>): Promise<ChildServer> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "../src/main.ts"), "serve"], {
    env: { PATH: process.env["PATH"] ?? "", PORT: "0", RATE_LIMITS: "off", ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  let output = "";
  const ready = Promise.withResolvers<string>();
  const reading = (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) {
      output += decoder.decode(chunk, { stream: true });
      const url = /is ready at (http:[^"\s]+)/.exec(output)?.[1];
      if (url !== undefined) ready.resolve(url);
    }
    ready.reject(new Error(`the server ended before it was ready:\n${output}`));
  })();
  const url = await within(ready.promise, "the server to be ready");
  return {
    url,
    pid: child.pid,
    async kill(signal) {
      child.kill(signal);
      await within(child.exited, "the server to end");
      await reading;
      return child.exitCode;
    },
    output: () => output,
  };
}
