/**
 * The WebSocket edge: Bun's handler of what upgrade.ts let in. A frame is parsed, becomes a write, and its outcome becomes an
 * answer; nothing here awaits before the write is queued, so the writes of a socket keep their order.
 */
import type { WebSocketHandler } from "bun";
import type { Config } from "../config.ts";
import { AppError, CLOSE } from "../errors.ts";
import { publicLimits } from "../limits.ts";
import type { Logger } from "../log.ts";
import type { OutageLog } from "../outage-log.ts";
import type { Metrics } from "../metrics/metrics.ts";
import { formatTime, type ClientMessage, type Protocol } from "../protocol.ts";
import type { Write, WriteOutcome } from "../storage/storage.ts";
import { encodeCursor } from "../sync/cursor.ts";
import type { Writer } from "../sync/writer.ts";
import { parseJson, validate } from "../validate.ts";
import type { Hub, Origin, Socket, SocketData } from "./hub.ts";
import type { Seats } from "./seats.ts";

export interface SocketOptions {
  config: Config;
  protocol: Pick<Protocol, "clientMessage">;
  hub: Hub;
  seats: Seats;
  writer: Writer<Origin>;
  log: Logger;
  logOutage: OutageLog;
  metrics: Pick<Metrics, "rejected" | "socketClosed">;
  /** The database's epoch, for cursors. */
  epoch: string;
}

/** Bun's handler. A throw in it would end the process, so every entry is guarded. */
export function createSocketHandler({
  config,
  protocol,
  hub,
  seats,
  writer,
  log,
  logOutage,
  metrics,
  epoch,
}: SocketOptions): WebSocketHandler<SocketData> {
  const { socketInFlightHigh, socketInFlightLow } = config.relay;

  return {
    maxPayloadLength: config.maxFrameBytes,
    idleTimeout: config.relay.idleTimeoutSeconds,
    sendPings: true,
    perMessageDeflate: false,
    // [R5] Without these Bun silently skips a reader that is too slow.
    backpressureLimit: config.socketBufferBytes,
    closeOnBackpressureLimit: true,

    open: guarded((socket) => {
      const excess = seats.take(socket);
      if (excess !== undefined) hub.end(excess, CLOSE.policyViolation, "This device has opened too many sockets.");
      if (socket.data.protocol === 2) sendWelcome(socket);
      if (socket.data.resync !== undefined) {
        sendJson(socket, { type: "resync_required", reason: socket.data.resync });
        socket.close(CLOSE.resyncRequired, "Come back without a cursor.");
        return;
      }
      hub.join(socket, (seq) => {
        if (socket.data.protocol === 2)
          sendJson(socket, { type: "sync_complete", cursor: encodeCursor(epoch, { seq, emptyUntilSeq: 0 }) });
      });
    }),
    message: guarded((socket, frame: string | Buffer) => receive(socket, frame)),
    // Bun answers a ping by itself; a flood of them costs as much as one of messages.
    ping: guarded((socket, payload: Buffer) => void floodWaitMs(socket, payload.length)),
    pong: guarded((socket, payload: Buffer) => {
      floodWaitMs(socket, payload.length);
      socket.data.delivery?.confirm(payload.toString());
    }),
    drain: guarded((socket) => socket.data.delivery?.drained()),
    close: guarded((socket, code: number) => {
      metrics.socketClosed(code);
      seats.leave(socket);
      hub.leave(socket);
    }),
  };

  function sendWelcome(socket: Socket): void {
    sendJson(socket, {
      type: "welcome",
      protocol: 2,
      cursor: encodeCursor(epoch, { seq: socket.data.fromSeq, emptyUntilSeq: socket.data.emptyUntilSeq }),
      server_time: formatTime(Date.now()),
      device_id: socket.data.deviceId,
      limits: publicLimits(config),
    });
  }

  function receive(socket: Socket, frame: string | Buffer): void {
    const retryAfterMs = floodWaitMs(socket, frame.length);
    let json: unknown;
    let message: ClientMessage;
    try {
      json = parseFrame(frame);
      if (retryAfterMs > 0) throw new AppError("rate_limited", "Too many messages; slow down.", { retryAfterMs });
      message = validate(protocol.clientMessage, json, "The message");
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      sendError(socket, error, refOf(json, config.sync.refMaxLength));
      return;
    }
    const { data } = socket;
    data.inFlight += 1;
    if (data.inFlight === socketInFlightHigh) socket.pause();
    const origin = {
      socket,
      confirmedCount: data.delivery?.confirmedCount ?? 0,
      claimedTimestamp: "timestamp" in message ? message.timestamp : null,
    };
    settle(socket, message, writer.submit(toWrite(message, data), origin)).catch((error: unknown) =>
      log.error("an answer could not be sent", { error }),
    );
  }

  async function settle(socket: Socket, message: ClientMessage, written: Promise<WriteOutcome>): Promise<void> {
    const { data } = socket;
    try {
      const outcome = await written;
      if (outcome.result === "stale" && outcome.winner !== null) await data.delivery?.sendWinner(outcome.winner);
      answer(socket, message, outcome);
    } catch (error) {
      refuse(socket, message, error);
    } finally {
      data.inFlight -= 1;
      if (data.inFlight === socketInFlightLow && socket.isPaused) socket.resume();
    }
  }

  /** 0: the frame may pass; else in how many milliseconds it might. Who goes on and on is cut off. */
  function floodWaitMs(socket: Socket, bytes: number): number {
    const { waitMs, goesOn } = socket.data.flood.count(bytes);
    if (goesOn) hub.end(socket, CLOSE.policyViolation, "Too many messages.");
    return waitMs;
  }

  /** `ack` and `ref` are protocol 2's, and harmless to others who ask for them. */
  function answer(socket: Socket, message: ClientMessage, outcome: WriteOutcome): void {
    switch (outcome.result) {
      case "revoked":
        socket.close(CLOSE.unauthorized, "The token no longer counts; sign in again.");
        return;
      case "quota_exceeded":
        sendError(socket, new AppError("quota_exceeded", "The account's storage is full."), message.ref);
        return;
      case "not_found":
        sendError(socket, new AppError("not_found", "There is no such history item."), message.ref);
        return;
      case "applied":
      case "duplicate":
      case "stale":
        if (message.ref !== undefined)
          sendJson(socket, { type: "ack", ref: message.ref, result: outcome.result, seq: outcome.seq });
    }
  }

  function refuse(socket: Socket, message: ClientMessage, error: unknown): void {
    if (!(error instanceof AppError)) log.error("a write failed", { error });
    sendError(
      socket,
      error instanceof AppError ? error : new AppError("internal", "Something went wrong on the server."),
      message.ref,
    );
  }

  function sendError(socket: Socket, error: AppError, ref: string | undefined): void {
    logOutage(error);
    metrics.rejected("socket", error.code);
    sendJson(socket, {
      type: "error",
      message: error.text,
      code: error.code,
      ...(ref === undefined ? {} : { ref }),
      ...(error.retryAfterMs === undefined ? {} : { retry_after_ms: error.retryAfterMs }),
    });
  }

  function guarded<Rest extends unknown[]>(handle: (socket: Socket, ...rest: Rest) => void) {
    return (socket: Socket, ...rest: Rest): void => {
      try {
        handle(socket, ...rest);
      } catch (error) {
        log.error("a socket handler failed", { error });
        socket.close(CLOSE.internalError, "Something went wrong on the server.");
      }
    };
  }
}

function parseFrame(frame: string | Buffer): unknown {
  if (typeof frame !== "string") throw new AppError("bad_request", "Messages are JSON text, not binary.");
  return parseJson(frame, "The message");
}

function sendJson(socket: Socket, message: Record<string, unknown>): void {
  socket.send(JSON.stringify(message));
}

/** The `ref` of a message that is otherwise wrong, so that its sender knows which one it was. */
function refOf(json: unknown, maxLength: number): string | undefined {
  if (typeof json !== "object" || json === null || !("ref" in json)) return undefined;
  return typeof json.ref === "string" && json.ref.length <= maxLength ? json.ref : undefined;
}

function toWrite(message: ClientMessage, data: SocketData): Write {
  const author = { userId: data.userId, deviceId: data.deviceId, tokenGeneration: data.tokenGeneration };
  switch (message.type) {
    case "slot_update":
      return {
        kind: "slot",
        author,
        slotNumber: message.slot_number,
        blob: message.encrypted_blob,
        timestamp: message.timestamp,
        baseSeq: message.base_seq ?? null,
      };
    case "slot_clear":
      return {
        kind: "slot",
        author,
        slotNumber: message.slot_number,
        blob: null,
        timestamp: message.timestamp,
        baseSeq: message.base_seq ?? null,
      };
    case "history_push":
      return {
        kind: "history_push",
        author,
        id: message.id,
        blob: message.encrypted_blob,
        contentHash: message.content_hash,
        createdAt: message.created_at ?? Date.now(),
        expiresAt: message.expires_at ?? null,
      };
    case "history_delete":
      return { kind: "history_delete", author, id: message.id };
  }
}
