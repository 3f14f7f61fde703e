/** GET /api/sync/ws: who connects, and from where on. Everything is decided before the upgrade, so a refusal is plain HTTP. */
import type { Server } from "bun";
import type { Sessions } from "../accounts/sessions.ts";
import { deadToken } from "../accounts/tokens.ts";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import { socketQuery } from "../protocol.ts";
import type { Storage } from "../storage/storage.ts";
import { resumeAt, type Cursor, type ResyncReason } from "../sync/cursor.ts";
import { validate } from "../validate.ts";
import type { FloodGuards } from "./flood.ts";
import type { SocketData } from "./hub.ts";
import type { Seats } from "./seats.ts";

/** The subprotocol a browser offers first; the token follows as the second ([P2]). */
const SUBPROTOCOL = "clipslot";

export interface UpgradeOptions {
  sessions: Sessions;
  storage: Storage;
  config: Config;
  seats: Pick<Seats, "admit">;
  floodGuards: FloodGuards;
  /** Who asks, as limits count. */
  clientAddress: (request: Request, server: Server<SocketData>) => string;
}

/**
 * Upgrades the request.
 *
 * @returns once the socket is open
 * @throws AppError `token_missing`, `token_invalid`, `device_required`, `origin_forbidden`, `bad_request`, `upgrade_required`, `rate_limited`
 */
export type Upgrade = (request: Request, server: Server<SocketData>) => Promise<void>;

/** What GET /api/sync/ws does; its errors stand at Upgrade. */
export function createUpgrade({
  sessions,
  storage,
  config,
  seats,
  floodGuards,
  clientAddress,
}: UpgradeOptions): Upgrade {
  return async (request, server) => {
    if (request.headers.get("upgrade")?.toLowerCase() !== "websocket") {
      throw new AppError("upgrade_required", "This address speaks WebSocket only.");
    }
    refuseForeignOrigin(request);
    const url = URL.parse(request.url);
    if (url === null) throw new AppError("bad_request", "The Host header is missing or not valid.");
    const query = validate(socketQuery, Object.fromEntries(url.searchParams), "The query");
    const { token, subprotocol } = findToken(request, query.token);
    const protocol = query.protocol === "2" ? 2 : 1;
    const cursor =
      protocol === 2 ? await readCursor((await sessions.authenticate(token)).userId, query.cursor) : undefined;
    // The last await: what is revoked after it finds the socket in the hub.
    const { identity, state } = await sessions.open(token);
    const { userId, deviceId, tokenGeneration, expiresAt } = identity;
    if (deviceId === null || state.device === null) {
      throw new AppError("device_required", "A socket needs a device's token.");
    }
    const start = cursor ?? { seq: state.device.confirmedSeq, emptyUntilSeq: 0 };
    const address = clientAddress(request, server);
    seats.admit({ userId, address });
    const flood = floodGuards(deviceId);
    if (flood.awayMs() > 0)
      throw new AppError("rate_limited", "This device sent too many messages.", { retryAfterMs: flood.awayMs() });
    const data: SocketData = {
      userId,
      address,
      deviceId,
      tokenGeneration,
      tokenExpiresAt: expiresAt,
      protocol,
      fromSeq: "seq" in start ? start.seq : 0,
      emptyUntilSeq: "seq" in start ? start.emptyUntilSeq : 0,
      resync: "resync" in start ? start.resync : undefined,
      inFlight: 0,
      flood,
      delivery: undefined,
    };
    const headers = subprotocol === undefined ? {} : { "Sec-WebSocket-Protocol": subprotocol };
    if (!server.upgrade(request, { data, headers }))
      throw new AppError("bad_request", "The WebSocket handshake is not valid.");
  };

  /** A browser says which page asks; a page of elsewhere has no business with a user's clips. Programs send no Origin. */
  function refuseForeignOrigin(request: Request): void {
    const origin = request.headers.get("origin");
    if (
      origin === null ||
      config.corsOrigins.includes(origin) ||
      URL.parse(origin)?.host === request.headers.get("host")
    )
      return;
    throw new AppError("origin_forbidden", "This origin may not connect.");
  }

  async function readCursor(userId: string, text: string | undefined): Promise<Cursor | { resync: ResyncReason }> {
    const account = await storage.summary(userId);
    if (account === null) throw deadToken();
    return resumeAt(text, storage.epoch, account);
  }
}

function findToken(
  request: Request,
  queryToken: string | undefined,
): { token: string; subprotocol: string | undefined } {
  const [first, second] = (request.headers.get("sec-websocket-protocol") ?? "").split(",").map((part) => part.trim());
  if (first === SUBPROTOCOL && second !== undefined && second !== "")
    return { token: second, subprotocol: SUBPROTOCOL };
  const [scheme, bearer] = (request.headers.get("authorization") ?? "").split(" ");
  if (scheme?.toLowerCase() === "bearer" && bearer !== undefined && bearer !== "")
    return { token: bearer, subprotocol: undefined };
  if (queryToken !== undefined && queryToken !== "") return { token: queryToken, subprotocol: undefined };
  throw new AppError("token_missing", "A token is missing or has expired.");
}
