import type { Logger } from "../log.ts";
import type { AppMiddleware } from "./context.ts";

/** Health checks come every few seconds and say nothing until they fail. */
const MUTED: ReadonlySet<string> = new Set(["/healthz", "/readyz"]);
const PATH_MAX_LENGTH = 256;

/** Names each request and logs one line about it: no query, no header, no body, so no secret. */
export function requestLog(log: Logger): AppMiddleware {
  return async (c, next) => {
    const started = performance.now();
    const requestId = crypto.randomUUID();
    c.set("requestId", requestId);
    await next();
    const { status, headers } = c.res;
    headers.set("X-Request-Id", requestId);
    const { path } = c.req;
    const level = MUTED.has(path) && status < 500 ? "debug" : "info";
    log[level]("request", {
      method: c.req.method,
      path: path.length > PATH_MAX_LENGTH ? path.slice(0, PATH_MAX_LENGTH) : path,
      status,
      ms: Math.round((performance.now() - started) * 10) / 10,
      request_id: requestId,
    });
  };
}
