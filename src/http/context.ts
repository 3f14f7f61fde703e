import type { Server } from "bun";
import type { Context, MiddlewareHandler } from "hono";
import type { Identity } from "../accounts/tokens.ts";
import type { ErrorCode } from "../errors.ts";
import type { SocketData } from "../relay/hub.ts";

/** What travels with a request. */
export interface AppEnv {
  Bindings: {
    /** Upgrades sockets. */
    server: Server<SocketData>;
  };
  Variables: {
    /** Ours, never the client's: it stands in the answer and in the log. */
    requestId: string;
    /** Of an answer that is an error. */
    errorCode?: ErrorCode;
    /** Set by require-auth: routes without it have none. */
    identity: Identity;
  };
}

export type AppContext = Context<AppEnv>;
export type AppMiddleware = MiddlewareHandler<AppEnv>;
