/** Every answer that is not a success: `{error, code}`, an error for a person and a code for a program. */
import { AppError, type ErrorCode } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { AppContext } from "./context.ts";

/** Words that make the shipped client log its user out when they stand in an error's text ([E1]). */
const LOGS_OUT = /401|unauthorized|expired/i;
const MAY_LOG_OUT: ReadonlySet<ErrorCode> = new Set(["token_missing", "token_invalid"]);

/** Answers an AppError as what it says; anything else is a fault of ours, logged here and nowhere else. */
export function createErrorHandler(log: Logger) {
  return (thrown: Error, c: AppContext): Response => {
    if (thrown instanceof AppError) return errorResponse(c, thrown);
    log.error("a request failed", {
      error: thrown,
      request_id: c.var.requestId,
      method: c.req.method,
      path: c.req.path,
    });
    return errorResponse(c, new AppError("internal", "Something went wrong on the server."), {
      request_id: c.var.requestId,
    });
  };
}

/**
 * @param details more fields for programs
 */
export function errorResponse(c: AppContext, error: AppError, details: Record<string, string> = {}): Response {
  c.set("errorCode", error.code);
  const headers: Record<string, string> = {};
  if (error.status === 401) headers["WWW-Authenticate"] = "Bearer"; // RFC 9110 §11.6.1
  if (error.code === "upgrade_required") headers["Upgrade"] = "websocket"; // RFC 9110 §15.5.22
  if (error.retryAfterMs !== undefined) headers["Retry-After"] = String(Math.ceil(error.retryAfterMs / 1000));
  return c.json({ error: harmlessText(error), code: error.code, ...details }, error.status, headers);
}

/** A number in a text can hold "401" by chance, a limit of 1,401,856 bytes for one. */
function harmlessText({ code, message }: AppError): string {
  return LOGS_OUT.test(message) && !MAY_LOG_OUT.has(code) ? "The server refused this request." : message;
}
