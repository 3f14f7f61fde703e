/**
 * Structured logs: one line an event, JSON for machines, text on a terminal. Callers pass no secret: no token, no
 * password, no query string, no blob. Of an error only what code wrote is logged, never the values of a query.
 */
import type { LogLevel } from "./config.ts";

const RANK: Record<LogLevel, number> = { debug: 0, info: 1, warn: 2, error: 3 };
const MESSAGE_MAX_LENGTH = 1_000;
const CAUSE_MAX_DEPTH = 3;

/** `error` may be anything that was thrown; the rest is plain data. */
export interface LogFields {
  error?: unknown;
  [name: string]: unknown;
}

export interface Logger {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
}

export interface LoggerOptions {
  /** Lines below this level are left out. */
  level: LogLevel;
  /** `json` for machines, `text` for a terminal. */
  format: "text" | "json";
  /** Takes one line, with its line feed. */
  write: (line: string) => void;
}

/** @param write takes whole lines, each with its line break */
export function createLogger({ level, format, write }: LoggerOptions): Logger {
  const render = format === "json" ? jsonLine : textLine;
  const at = (lineLevel: LogLevel) => {
    if (RANK[lineLevel] < RANK[level]) return () => {};
    return (message: string, fields: LogFields = {}) => write(render(lineLevel, message, plainFields(fields)));
  };
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

/**
 * Gathers lines and hands them on once a turn of the event loop: under load one system call carries many.
 *
 * @param write takes whole lines, such as `process.stdout.write`
 * @returns `flush` for the end of the process
 */
export function bufferedLines(write: (lines: string) => void): { write: (line: string) => void; flush: () => void } {
  let lines = "";
  const flush = () => {
    if (lines === "") return;
    const gathered = lines;
    lines = "";
    write(gathered);
  };
  return {
    write(line) {
      if (lines === "") setImmediate(flush);
      lines += line;
    },
    flush,
  };
}

function jsonLine(level: LogLevel, message: string, fields: Record<string, unknown>): string {
  return `${JSON.stringify({ time: new Date().toISOString(), level, message, ...fields })}\n`;
}

function textLine(level: LogLevel, message: string, fields: Record<string, unknown>): string {
  const { stack, ...rest } = fields;
  const pairs = Object.entries(rest)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => ` ${name}=${textValue(value)}`);
  const frames = typeof stack === "string" ? `\n${stack}` : "";
  return `${new Date().toISOString()} ${level.toUpperCase().padEnd(5)} ${message}${pairs.join("")}${frames}\n`;
}

function textValue(value: unknown): string {
  return typeof value === "string" && /^[\x21\x23-\x7e]+$/.test(value) ? value : JSON.stringify(value);
}

function plainFields({ error, ...fields }: LogFields): Record<string, unknown> {
  if (error === undefined) return fields;
  return { ...fields, ...describeError(error) };
}

/**
 * What a log may say of something thrown: the messages down to the cause, and the frames. drizzle's error of a query
 * has the values of its parameters in its message (and so in its stack), so only its cause speaks.
 */
function describeError(error: unknown): { error: string; stack?: string } {
  if (!(error instanceof Error))
    return {
      error: typeof error === "string" ? error.slice(0, MESSAGE_MAX_LENGTH) : "something that is no Error was thrown",
    };
  const messages: string[] = [];
  let current: unknown = error;
  for (let depth = 0; depth < CAUSE_MAX_DEPTH && current instanceof Error; depth += 1) {
    messages.push(
      "query" in current && "params" in current
        ? `${current.name}: a query failed`
        : `${current.name}: ${current.message}`,
    );
    current = current.cause;
  }
  const frames = (error.stack ?? "").split("\n").filter((line) => /^\s+at /.test(line));
  return { error: messages.join(" < ").slice(0, MESSAGE_MAX_LENGTH), stack: frames.join("\n") };
}
