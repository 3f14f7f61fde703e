/** What a person at the keyboard is told when a command fails. */
import { ConfigError } from "../config.ts";
import { AppError } from "../errors.ts";
import { OperatorError, UsageError, type Command } from "./command.ts";

/** Errors whose message says all there is to say; their names, so that no adapter has to be loaded to compare. */
const PLAIN = new Set([
  "DatabaseInUseError",
  "NewerDatabaseError",
  "MetricsListenError",
  "FileExistsError",
  "TransferError",
]);

/** Codes of the operating system that a person can act on (errno(3)). */
const SYSTEM: Record<string, (path: string) => string> = {
  EADDRINUSE: () => "The port is in use by another program: stop it, or set PORT.",
  EACCES: (path) => `Permission denied${path}: run as the user who owns it, or choose another place.`,
  ENOENT: (path) => `There is no such file or folder${path}.`,
  EROFS: (path) => `The file system is read-only${path}.`,
  ENOSPC: (path) => `The disk is full${path}.`,
};

/** @returns what to say, in plain words where somebody can act on it, and the exit code: 2 for wrong usage, else 1 */
export function describeFailure(error: unknown, command: Command): { text: string; exitCode: number } {
  if (error instanceof UsageError) return { text: `${error.message}\n\n${command.usage}`, exitCode: 2 };
  if (error instanceof ConfigError || error instanceof OperatorError || error instanceof AppError)
    return { text: error.message, exitCode: 1 };
  if (error instanceof Error) {
    if (PLAIN.has(error.name)) return { text: error.message, exitCode: 1 };
    if (error.name === "SqliteFileError") return { text: `The file can't be used: ${error.message}.`, exitCode: 1 };
    const code = "code" in error ? String(error.code) : "";
    const path = "path" in error ? ` (${String(error.path)})` : "";
    const advice = SYSTEM[code];
    if (advice !== undefined) return { text: advice(path), exitCode: 1 };
  }
  return { text: error instanceof Error ? (error.stack ?? error.message) : String(error), exitCode: 1 };
}
