/** Reads what stands behind a command's name. */
import { parseArgs, type ParseArgsOptionsConfig } from "node:util";
import { UsageError, type Command, type CommandIo } from "./command.ts";

/**
 * Reads options and exactly the words that are named.
 *
 * @param names of the words, as the usage calls them, such as ["EMAIL"]
 * @throws UsageError
 */
export function readWords<const Names extends readonly string[], const Options extends ParseArgsOptionsConfig>(
  args: string[],
  names: Names,
  options: Options,
) {
  const { positionals, values } = parse(args, options);
  const missing = names.slice(positionals.length);
  const surplus = positionals.slice(names.length);
  if (missing.length > 0) throw new UsageError(`${missing.join(" and ")} is missing.`);
  if (surplus.length > 0) throw new UsageError(`"${surplus.join(" ")}" is too much.`);
  return { words: positionals as { [Index in keyof Names]: string }, options: values };
}

function parse<const Options extends ParseArgsOptionsConfig>(args: string[], options: Options) {
  try {
    return parseArgs({ args, options, allowPositionals: true, strict: true });
  } catch (error) {
    // Its own message, but for the advice about `--` that follows the first sentence.
    throw new UsageError(error instanceof Error ? (error.message.split(". ")[0] ?? "").replace(/\.?$/, ".") : "");
  }
}

/** A command whose first word chooses what it does. */
export function withSubcommands({
  summary,
  usage,
  subcommands,
}: {
  summary: string;
  usage: string;
  subcommands: Record<string, (args: string[], io: CommandIo) => Promise<number>>;
}): Command {
  return {
    summary,
    usage,
    async run([name, ...args], io) {
      const run = name !== undefined && Object.hasOwn(subcommands, name) ? subcommands[name] : undefined;
      if (run !== undefined) return run(args, io);
      throw new UsageError(name === undefined ? "A word is missing that says what to do." : `"${name}" is unknown.`);
    },
  };
}
