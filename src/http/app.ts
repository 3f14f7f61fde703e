/** Every route of the server. */
import { Hono } from "hono";
import { cors } from "hono/cors";
import { methodNotAllowed } from "hono/method-not-allowed";
import { secureHeaders } from "hono/secure-headers";
import { getPath } from "hono/utils/url";
import { AppError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { OutageLog } from "../outage-log.ts";
import type { Metrics } from "../metrics/metrics.ts";
import type { Upgrade } from "../relay/upgrade.ts";
import { authHandlers, type AuthDependencies } from "./auth.ts";
import { changeHandlers, type ChangeDependencies } from "./changes.ts";
import type { AppEnv, AppMiddleware } from "./context.ts";
import { deviceHandlers, type DeviceDependencies } from "./devices.ts";
import { docsHandlers, type DocsDependencies } from "./docs.ts";
import { createErrorHandler, errorResponse } from "./errors.ts";
import { exportHandler, type ExportDependencies } from "./export.ts";
import { historyHandlers, type HistoryDependencies } from "./history.ts";
import { opsHandlers, type OpsDependencies } from "./ops.ts";
import { requestLog } from "./request-log.ts";
import { requireAuth } from "./require-auth.ts";
import { slotHandlers, type SlotDependencies } from "./slots.ts";

export type AppDependencies = AuthDependencies &
  DeviceDependencies &
  SlotDependencies &
  HistoryDependencies &
  ChangeDependencies &
  ExportDependencies &
  DocsDependencies &
  OpsDependencies & {
    log: Logger;
    logOutage: OutageLog;
    metrics: Pick<Metrics, "answered" | "rejected">;
    upgrade: Upgrade;
  };

/** The application: every route, and what stands before and behind all of them. */
export function createApp(dependencies: AppDependencies): Hono<AppEnv> {
  const { config, log, logOutage, metrics, sessions, upgrade } = dependencies;
  const signedIn = requireAuth(sessions);
  const auth = authHandlers(dependencies);
  const devices = deviceHandlers(dependencies);
  const slots = slotHandlers(dependencies);
  const history = historyHandlers(dependencies);
  const changes = changeHandlers(dependencies);
  const ops = opsHandlers(dependencies);
  const docs = docsHandlers(dependencies);

  const app = new Hono<AppEnv>({ getPath: pathOf });
  app.onError(createErrorHandler(log, logOutage));
  app.notFound((c) => errorResponse(c, new AppError("not_found", "There is nothing at this address.")));
  app.use(requestLog(log, metrics), answerHeaders(), contentPolicy);
  app.use("/api/*", neverKept);
  if (config.corsOrigins.length > 0) app.use("/api/*", browserAccess(config.corsOrigins));
  app.use(
    methodNotAllowed({
      app,
      onMethodNotAllowed: (c, methods) => {
        c.header("Allow", methods.join(", "));
        return errorResponse(c, new AppError("method_not_allowed", "This address doesn't know this method."));
      },
    }),
  );

  app.post("/api/auth/register", auth.register);
  app.post("/api/auth/login", auth.login);
  app.post("/api/auth/refresh", signedIn, auth.refresh);
  app.post("/api/auth/password", signedIn, auth.changePassword);
  app.get("/api/auth/account", signedIn, auth.account);
  app.delete("/api/auth/account", signedIn, auth.removeAccount);
  app.get("/api/auth/export", signedIn, exportHandler(dependencies));
  app.post("/api/auth/link-code", signedIn, auth.createLinkCode);
  app.post("/api/auth/redeem-code", signedIn, auth.redeemLinkCode);

  app.post("/api/auth/device", signedIn, devices.register);
  app.get("/api/auth/devices", signedIn, devices.list);
  app.delete("/api/auth/device/:id", signedIn, devices.revoke);

  app.get("/api/sync/slots", signedIn, slots.list);
  app.put("/api/sync/slots/:number", signedIn, slots.put);
  app.delete("/api/sync/slots/:number", signedIn, slots.clear);
  app.get("/api/sync/history", signedIn, history.list);
  app.post("/api/sync/history", signedIn, history.push);
  app.delete("/api/sync/history/:id", signedIn, history.remove);
  app.get("/api/sync/changes", signedIn, changes.list);
  app.get("/api/sync/ws", async (c) => {
    await upgrade(c.req.raw, c.env.server);
    return new Response(null, { status: 101 });
  });

  app.get("/api-docs/openapi.json", docs.document);
  app.get("/docs", docs.page);
  app.get("/api/info", ops.info);
  app.get("/healthz", ops.alive);
  app.get("/readyz", ops.ready);
  return app;
}

/** Without a Host header, as health checks may come, Bun's URL of a request is its path alone. */
function pathOf(request: Request): string {
  return getPath(request.url.startsWith("/") ? ({ url: `http://unnamed${request.url}` } as Request) : request);
}

/**
 * Answers are data for programs: nothing in them is to be rendered, framed or guessed at. What only matters to pages is
 * left out, and HSTS is for whoever ends TLS.
 */
function answerHeaders(): AppMiddleware {
  return secureHeaders({
    crossOriginOpenerPolicy: false,
    originAgentCluster: false,
    removePoweredBy: false,
    strictTransportSecurity: false,
    xDnsPrefetchControl: false,
    xDownloadOptions: false,
    xFrameOptions: false,
    xPermittedCrossDomainPolicies: false,
    xXssProtection: false,
  });
}

/** The one page there is brings its own. */
const contentPolicy: AppMiddleware = async (c, next) => {
  await next();
  const { headers } = c.res;
  if (!headers.has("Content-Security-Policy")) {
    headers.set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'");
  }
};

/** Answers hold tokens and clips: no cache on the way keeps them (RFC 9111 §5.2.2.5). */
const neverKept: AppMiddleware = async (c, next) => {
  await next();
  c.res.headers.set("Cache-Control", "no-store");
};

/** CORS for the origins that the configuration names. Tokens travel in a header, so no credentials are allowed. */
function browserAccess(origins: string[]): AppMiddleware {
  return cors({
    origin: origins,
    allowMethods: ["GET", "PUT", "POST", "DELETE"],
    allowHeaders: ["Authorization", "Content-Type"],
    exposeHeaders: ["Link", "Retry-After", "X-Request-Id"],
    maxAge: 600,
  });
}
