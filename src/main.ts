/** The entry point: argv → command → exit code. */
import type { Command, CommandIo } from "./cli/command.ts";
import { describeFailure } from "./cli/failure.ts";
import { createProgress } from "./cli/progress.ts";
import { VERSION, readCommit } from "./version.ts";

/** Loaded when called: a server need not read what copies databases. */
const COMMANDS: Record<string, () => Promise<{ command: Command }>> = {
  serve: () => import("./cli/serve.ts"),
  migrate: () => import("./cli/migrate.ts"),
  user: () => import("./cli/user.ts"),
  device: () => import("./cli/device.ts"),
  backup: () => import("./cli/backup.ts"),
  restore: () => import("./cli/restore.ts"),
  copy: () => import("./cli/copy.ts"),
  healthcheck: () => import("./cli/healthcheck.ts"),
  config: () => import("./cli/config.ts"),
};

// What we write may find no taker: its reader has left (`user list | head`, a log collector that restarts), the disk is
// full. That is no reason for a server to stop; a command that could not say all has failed.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") process.once("exit", () => (process.exitCode ||= 1));
  });
}

process.exitCode = await main(process.argv.slice(2), {
  env: process.env,
  print: (line) => process.stdout.write(`${line}\n`),
  complain: (line) => process.stderr.write(`${line}\n`),
  readSecret: async (question) => (await import("./cli/secret-input.ts")).readSecret(question),
  progress: createProgress((text) => process.stderr.write(text), process.stderr.isTTY),
});

async function main([name = "serve", ...args]: string[], io: CommandIo): Promise<number> {
  if (name === "--version" || name === "-v") return say(io, `clipslot-server ${VERSION} (${readCommit()})`);
  if (name === "help" || name === "--help" || name === "-h") return say(io, await listCommands());
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (load === undefined) {
    io.complain(`There is no command "${name}". \`clipslot-server help\` lists them.`);
    return 2;
  }
  const { command } = await load();
  if (args.includes("--help") || args.includes("-h")) return say(io, `${command.summary}\n\n${command.usage}`);
  try {
    return await command.run(args, io);
  } catch (error) {
    const failure = describeFailure(error, command);
    io.complain(failure.text);
    return failure.exitCode;
  }
}

function say(io: CommandIo, text: string): number {
  io.print(text);
  return 0;
}

async function listCommands(): Promise<string> {
  const lines = await Promise.all(
    Object.entries(COMMANDS).map(async ([name, load]) => `  ${name.padEnd(12)} ${(await load()).command.summary}`),
  );
  return [
    `clipslot-server ${VERSION}: relays encrypted clips between one person's devices.`,
    "",
    "Usage: clipslot-server [COMMAND] [--help]",
    "",
    ...lines,
    "",
    "Settings come from the environment; README.md lists them.",
  ].join("\n");
}
