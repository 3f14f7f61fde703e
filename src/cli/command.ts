/** What every command has: words for a person, and a run that ends in an exit code. */
import type { Progress } from "./progress.ts";

export interface Command {
  /** One line for the list of commands. */
  summary: string;
  /** What `clipslot-server COMMAND --help` prints below the summary. */
  usage: string;
  /**
   * @param args what stands behind the command's name
   * @returns the exit code: 0 done, 1 failed, 2 called wrongly
   */
  run(args: string[], io: CommandIo): Promise<number>;
}

/** The world as a command sees it. */
export interface CommandIo {
  env: Record<string, string | undefined>;
  /** Writes a line to standard output. */
  print(line: string): void;
  /** Writes a line to standard error. */
  complain(line: string): void;
  /** Reads a line that nobody should see from standard input; at a terminal it is asked for and not shown. */
  readSecret(question: string): Promise<string>;
  /** Tells how far something long has come, on standard error; see progress.ts. */
  progress: Progress;
}

/** The command was called with the wrong words: exit code 2, and its usage. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Something the person at the keyboard can do something about: said in plain words, without a stack, exit code 1. */
export class OperatorError extends Error {
  override readonly name = "OperatorError";
}
