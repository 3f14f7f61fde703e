/** What went wrong in PostgreSQL or on the way to it, in the words of the port. */
import { DrizzleQueryError } from "drizzle-orm/errors";
import postgres from "postgres";
import { AppError } from "../../errors.ts";

const RETRY_AFTER_MS = 2_000;

/** SQLSTATEs (PostgreSQL manual, appendix A) that say the server can't serve us now, whatever was asked of it. */
const AWAY = new RegExp(
  [
    "08...", // connection exceptions; also what PgBouncer answers when it has no server
    "25006", // read_only_sql_transaction: a standby, or a primary that has just been replaced
    "53...", // insufficient resources; 53100, disk full, is looked for first
    "55P03", // lock_not_available
    "57014", // query_canceled: statement_timeout, or an administrator
    "57P0[1-35]", // the server shuts down, has crashed, starts; an idle session was ended
  ]
    .map((code) => `^${code}$`)
    .join("|"),
);

/** Codes of postgres.js and of the operating system for a connection that broke, */
const LOST = new Set(["CONNECTION_CLOSED", "CONNECT_TIMEOUT", "ECONNABORTED", "ECONNRESET", "EPIPE", "ETIMEDOUT"]);

/** and for one that could not be made, or that we have closed. */
const NOT_CONNECTED = new Set([
  "CONNECTION_DESTROYED",
  "CONNECTION_ENDED",
  "EAI_AGAIN",
  "ECONNREFUSED",
  "EHOSTDOWN",
  "EHOSTUNREACH",
  "ENETDOWN",
  "ENETUNREACH",
  "ENOENT", // the socket file of a server that is not running
  "ENOTFOUND",
]);

/** @param cause for the log; nobody outside sees it */
export const unavailable = (cause?: unknown) =>
  new AppError("unavailable", "The database can't be reached right now.", { cause, retryAfterMs: RETRY_AFTER_MS });

/** Rolled back because of others at the same time: deadlock_detected, serialization_failure. It may be tried again. */
export function isConflict(error: unknown): boolean {
  return ["40P01", "40001"].includes(codeOf(error) ?? "");
}

/** A connection that stood was lost, or one could not be made in time. */
export function isLostConnection(error: unknown): boolean {
  const code = codeOf(error);
  return code !== undefined && (LOST.has(code) || /^57P0[12]$/.test(code));
}

/** A key of ours was there already (unique_violation). */
export function isDuplicate(error: unknown): boolean {
  return codeOf(error) === "23505";
}

/** As the port promises: AppError where it is the database's state, else a fault of ours that names no value. */
export function translate(error: unknown): Error {
  const fault = causeOf(error);
  if (fault instanceof AppError) return fault;
  const code = codeOf(fault);
  if (code === "53100") return new AppError("disk_full", "The server's disk is full.", { cause: withoutValues(fault) });
  if (code !== undefined && (AWAY.test(code) || LOST.has(code) || NOT_CONNECTED.has(code)))
    return unavailable(withoutValues(fault));
  return withoutValues(fault);
}

/** drizzle wraps an error in one whose message holds the query and its parameters. */
function causeOf(error: unknown): unknown {
  return error instanceof DrizzleQueryError ? error.cause : error;
}

function codeOf(error: unknown): string | undefined {
  const fault = causeOf(error);
  return fault instanceof Error && "code" in fault && typeof fault.code === "string" ? fault.code : undefined;
}

/** PostgreSQL's `detail` and `where` quote rows: hashes, blobs. They must not reach a log. */
function withoutValues(fault: unknown): Error {
  if (fault instanceof postgres.PostgresError) {
    const { code, message, routine, constraint_name: constraint } = fault;
    const place = [code, routine, constraint].filter((part) => part !== undefined && part !== "").join(", ");
    return new Error(`PostgreSQL: ${message} (${place})`);
  }
  return fault instanceof Error ? fault : new Error("PostgreSQL failed without an error", { cause: fault });
}
