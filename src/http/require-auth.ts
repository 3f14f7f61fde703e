import type { Sessions } from "../accounts/sessions.ts";
import { AppError } from "../errors.ts";
import type { AppMiddleware } from "./context.ts";

/** RFC 6750 §2.1; the scheme's name is case-insensitive (RFC 9110 §11.1). */
const BEARER = /^bearer +([A-Za-z0-9._~+/-]+=*) *$/i;

/** Lets a request pass whose `Authorization: Bearer` names somebody, and says who: `c.var.identity`. */
export function requireAuth(sessions: Sessions): AppMiddleware {
  return async (c, next) => {
    const token = BEARER.exec(c.req.header("Authorization") ?? "")?.[1];
    if (token === undefined) throw new AppError("token_missing", "The token is missing, invalid or expired.");
    c.set("identity", await sessions.authenticate(token));
    await next();
  };
}
