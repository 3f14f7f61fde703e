import { routePath } from "hono/route";
import type { Logger } from "../log.ts";
import type { Metrics } from "../metrics/metrics.ts";
import type { AppContext, AppMiddleware } from "./context.ts";

/** Health checks come every few seconds and say nothing until they fail. */
const MUTED: ReadonlySet<string> = new Set(["/healthz", "/readyz"]);
const PATH_MAX_LENGTH = 256;

/** Names each request, measures it, and logs one line about it: no query, no header, no body, so no secret. */
export function requestLog(log: Logger, metrics: Pick<Metrics, "answered" | "rejected">): AppMiddleware {
  return async (c, next) => {
    const started = performance.now();
    const requestId = crypto.randomUUID();
    c.set("requestId", requestId);
    await next();
    const { status, headers } = c.res;
    headers.set("X-Request-Id", requestId);
    const { method, path } = c.req;
    const code = c.get("errorCode");
    const milliseconds = performance.now() - started;
    const level = MUTED.has(path) && status < 500 ? "debug" : "info";
    log[level]("request", {
      method,
      path: path.length > PATH_MAX_LENGTH ? path.slice(0, PATH_MAX_LENGTH) : path,
      status,
      code,
      ms: Math.round(milliseconds * 10) / 10,
      request_id: requestId,
    });
    metrics.answered(method, routeOf(c), status, milliseconds);
    if (code !== undefined) metrics.rejected("http", code);
  };
}

/** The pattern that answered: addresses have ids in them, and strangers ask for any. */
function routeOf(c: AppContext): string {
  const pattern = routePath(c, -1);
  return pattern.endsWith("*") ? "none" : pattern;
}
