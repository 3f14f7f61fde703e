/** Every answer that is not a success: `{error, code}`, an error for a person and a code for a program. */
import { AppError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { OutageLog } from "../outage-log.ts";
import type { AppContext } from "./context.ts";

/** Answers an AppError as what it says; anything else is a fault of ours, logged here and nowhere else. */
export function createErrorHandler(log: Logger, logOutage: OutageLog) {
  return (thrown: Error, c: AppContext): Response => {
    if (thrown instanceof AppError) {
      logOutage(thrown);
      return errorResponse(c, thrown);
    }
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
  return c.json({ error: error.text, code: error.code, ...details }, error.status, headers);
}
