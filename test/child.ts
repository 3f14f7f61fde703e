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

/** How the program is called from its sources. */
export const FROM_SOURCE: readonly string[] = [process.execPath, join(import.meta.dir, "../src/main.ts")];

/** Starts the server, from its sources unless told otherwise, and waits until it says where it listens. */
export async function startChildServer(
  env: Record<string, string>,
  program: readonly string[] = FROM_SOURCE,
): Promise<ChildServer> {
  const child = Bun.spawn([...program, "serve"], {
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

export interface CommandResult {
  code: number;
  /** Standard output. */
  output: string;
  /** Standard error. */
  complaints: string;
}

/** How a test calls the program: from its sources, or (with `program`) a binary built from them. */
export interface CommandOptions {
  env?: Record<string, string | undefined>;
  /** Standard input. */
  input?: string;
  cwd?: string;
  program?: readonly string[];
}

/** Runs a command of `src/main.ts` to its end. */
export async function runCommand(
  args: readonly string[],
  { env = {}, input = "", cwd, program = FROM_SOURCE }: CommandOptions = {},
): Promise<CommandResult> {
  const child = Bun.spawn([...program, ...args], {
    env: { PATH: process.env["PATH"] ?? "", ...env },
    stdio: [Buffer.from(input), "pipe", "pipe"],
    ...(cwd === undefined ? {} : { cwd }),
  });
  const [output, complaints, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { code, output, complaints };
}

/** As runCommand, for a command that must succeed: what it printed. */
export async function runWell(args: readonly string[], options?: CommandOptions): Promise<string> {
  const { code, output, complaints } = await runCommand(args, options);
  if (code !== 0) throw new Error(`${args.join(" ")} ended with code ${code}:\n${output}${complaints}`);
  return output;
}
