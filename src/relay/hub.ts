/**
 * The sockets of this instance, by account. Each account with sockets here has a channel: one native topic, and the
 * seq up to which its changes have been published on it. A change that this instance commits is published at once
 * when it follows what was published; otherwise another instance wrote in between, and the channel reads the gap from
 * the database, so every socket hears every change in seq order ([R1]).
 */
import type { Server, ServerWebSocket } from "bun";
import type { Bus, Revocation } from "../bus/bus.ts";
import type { Config } from "../config.ts";
import { CLOSE } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Connections, Metrics } from "../metrics/metrics.ts";
import { changeMessage } from "../protocol.ts";
import type { Change, Device, Storage } from "../storage/storage.ts";
import type { ResyncReason } from "../sync/cursor.ts";
import type { Commit } from "../sync/writer.ts";
import { nextTurn } from "../waiting.ts";
import { Delivery, type Channel as DeliveryChannel } from "./catch-up.ts";
import type { FloodGuard } from "./flood.ts";
import type { Presence } from "./presence.ts";

const TOKEN_REVOKED = "The token no longer counts; sign in again.";
/** Accounts that are looked at at once, and sockets whose tokens are asked for: on SQLite, less than a millisecond's work. */
const LOOK_ACCOUNTS = 200;
const RECHECK_SOCKETS = 100;

export interface SocketData {
  userId: string;
  deviceId: string;
  /** Where it comes from, as limits count. */
  address: string;
  tokenGeneration: number;
  /** Milliseconds; past it the socket is closed ([R6]). */
  tokenExpiresAt: number;
  protocol: 1 | 2;
  /** Send changes after this seq. */
  fromSeq: number;
  /** Deletions up to this seq are no news to the client: it starts from nothing, later than they were. */
  emptyUntilSeq: number;
  /** Protocol 2: why its cursor can't be served. */
  resync: ResyncReason | undefined;
  /** Writes whose outcome is not known yet. */
  inFlight: number;
  flood: FloodGuard;
  /** Set when the socket opens. */
  delivery: Delivery | undefined;
}

export type Socket = ServerWebSocket<SocketData>;

/** Where a write came from. */
export interface Origin {
  socket: Socket;
  /** How many of the messages sent to it the socket had confirmed when the write arrived ([R4]). */
  confirmedCount: number;
  /** The timestamp that it claimed; null for a write that has none. */
  claimedTimestamp: number | null;
}

interface Channel extends DeliveryChannel {
  readonly userId: string;
  coveredSeq: number | undefined;
  /** The account's counter is known to stand here or beyond. */
  knownSeq: number;
  /** Another instance or a read says that the counter stands at `seq` or beyond. */
  observe(seq: number): void;
  filling: Promise<void> | undefined;
  readonly sockets: Set<Socket>;
  /** Where changes came from that are published from the database. */
  readonly origins: Map<number, Origin>;
}

export interface HubOptions {
  storage: Storage;
  config: Config;
  bus: Bus;
  presence: Presence;
  log: Logger;
  metrics: Pick<Metrics, "caughtUp" | "relayed">;
}

export type Hub = ReturnType<typeof createHub>;

/** One for the whole process; publishes once `attach` has given it the server whose topics it uses. */
export function createHub({ storage, config, bus, presence, log, metrics }: HubOptions) {
  const channels = new Map<string, Channel>();
  let server: Pick<Server<SocketData>, "publish"> | undefined;
  let goodbye: { code: number; reason: string } | undefined;

  return {
    /** The server whose topics carry the messages; known only once it listens. */
    attach(listening: Pick<Server<SocketData>, "publish">) {
      server = listening;
    },
    join,
    leave,
    onCommit,
    announce,
    look,
    closeRevoked,
    recheck,
    closeExpired,
    closeAll,
    end,
    /** Whether the device has a socket, here or (as of the last minute) on another instance. */
    isConnected: (userId: string, device: Pick<Device, "id" | "connectedUntil">): boolean =>
      channels
        .get(userId)
        ?.sockets.values()
        .some((socket) => socket.data.deviceId === device.id) === true || presence.isHeldElsewhere(device),
    /** Says again that the devices of all sockets are here. */
    holdAll() {
      for (const channel of channels.values()) {
        for (const { data } of channel.sockets) presence.hold(data.userId, data.deviceId);
      }
    },
    connections,
  };

  // Sockets

  /** @param onCaughtUp protocol 2: everything up to `seq` has been sent */
  function join(socket: Socket, onCaughtUp: (seq: number) => void): void {
    if (goodbye !== undefined) return end(socket, goodbye.code, goodbye.reason);
    const { userId, deviceId, protocol, fromSeq } = socket.data;
    const channel = channels.get(userId) ?? openChannel(userId);
    channel.sockets.add(socket);
    const confirms = protocol === 1;
    const delivery = new Delivery({
      socket,
      storage,
      channel,
      config,
      userId,
      confirms,
      emptyUntilSeq: socket.data.emptyUntilSeq,
      fromSeq: confirms ? Math.max(fromSeq, presence.unwrittenSeq(deviceId)) : fromSeq,
      onCaughtUp(seq, messages) {
        metrics.caughtUp(messages);
        onCaughtUp(seq);
      },
      onFault: (error) => log.warn("changes could not be read for a device; trying again", { error }),
      onConfirmed: (seq) => presence.note(userId, deviceId, seq),
    });
    socket.data.delivery = delivery;
    presence.hold(userId, deviceId);
    // The cursor it came with is all that we know for sure to have arrived.
    if (!confirms) presence.note(userId, deviceId, fromSeq);
    void delivery.advance();
  }

  function leave(socket: Socket): void {
    const { userId, deviceId, delivery } = socket.data;
    delivery?.close();
    const channel = channels.get(userId);
    if (channel === undefined || !channel.sockets.delete(socket)) return;
    presence.note(userId, deviceId, 0);
    if (channel.sockets.size === 0) channels.delete(userId);
  }

  /** Who is here, counted when somebody asks. */
  function connections(): Connections {
    const sockets = { 1: 0, 2: 0 };
    const devices = { 1: 0, 2: 0 };
    for (const channel of channels.values()) {
      const seen = new Set<string>();
      for (const { data } of channel.sockets) {
        sockets[data.protocol] += 1;
        if (!seen.has(data.deviceId)) devices[data.protocol] += 1;
        seen.add(data.deviceId);
      }
    }
    return { accounts: channels.size, sockets, devices };
  }

  // Changes

  /** Hears of every commit of this instance, in commit order, before its writers do. */
  function onCommit(commits: Commit<Origin>[]): void {
    for (const commit of commits) {
      const channel = channels.get(commit.userId);
      if (channel !== undefined) relay(channel, commit);
      bus.tell({ kind: "changes", userId: commit.userId, seq: commit.seq });
    }
  }

  function relay(channel: Channel, commit: Commit<Origin>): void {
    if (channel.filling === undefined && channel.coveredSeq === commit.previousSeq) {
      for (const [index, change] of commit.changes.entries()) publish(channel, change, commit.origins[index]);
      channel.coveredSeq = commit.seq;
      channel.knownSeq = Math.max(channel.knownSeq, commit.seq);
      return;
    }
    for (const [index, change] of commit.changes.entries()) {
      const origin = commit.origins[index];
      // Whoever is not remembered hears its own change, which is no harm: all clients take a change twice.
      if (origin !== undefined && channel.origins.size < config.relay.rememberedOrigins)
        channel.origins.set(change.seq, origin);
    }
    channel.observe(commit.seq);
  }

  /** Another instance says that the account's counter reached `seq`. */
  function announce(userId: string, seq: number): void {
    channels.get(userId)?.observe(seq);
  }

  function openChannel(userId: string): Channel {
    const channel: Channel = {
      userId,
      topic: userId,
      coveredSeq: undefined,
      knownSeq: 0,
      filling: undefined,
      sockets: new Set(),
      origins: new Map(),
      observe(seq) {
        channel.knownSeq = Math.max(channel.knownSeq, seq);
        if (channel.coveredSeq !== undefined && channel.coveredSeq < channel.knownSeq) void channel.caughtUp();
      },
      reached(seq) {
        channel.coveredSeq ??= seq;
        channel.observe(seq);
      },
      caughtUp() {
        channel.filling ??= fill(channel).then((isFilled) => {
          channel.filling = undefined;
          for (const socket of channel.sockets) void socket.data.delivery?.advance();
          // Something may have been said since the last look, when nobody listened any more.
          if (isFilled && channel.sockets.size > 0) channel.observe(channel.knownSeq);
        });
        return channel.filling;
      },
    };
    channels.set(userId, channel);
    return channel;
  }

  /**
   * Publishes what other instances wrote, from the database, until nothing is known to be missing.
   *
   * @returns false: it could not, and is not to be tried again at once
   */
  async function fill(channel: Channel): Promise<boolean> {
    let isFilled = true;
    try {
      while (channel.coveredSeq !== undefined && channel.coveredSeq < channel.knownSeq && channel.sockets.size > 0) {
        const page = await storage.changesAfter(channel.userId, channel.coveredSeq, {
          limit: config.sync.catchUpPageItems,
          maxBytes: config.sync.catchUpPageBytes,
        });
        for (const change of page.changes) publish(channel, change, channel.origins.get(change.seq));
        if (page.throughSeq <= channel.coveredSeq && !page.hasMore) {
          isFilled = false; // the account is gone
          break;
        }
        channel.coveredSeq = page.throughSeq;
        if (page.hasMore) await nextTurn();
      }
    } catch (error) {
      isFilled = false;
      log.warn("changes could not be read for the relay; trying again", { error });
    }
    for (const seq of channel.origins.keys()) {
      if (seq <= (channel.coveredSeq ?? 0)) channel.origins.delete(seq);
    }
    return isFilled;
  }

  /** One text for all receivers; a client of protocol 1 ignores the fields it does not know. */
  function publish(channel: Channel, change: Change, origin: Origin | undefined): void {
    const needsOwn = origin?.socket.data.delivery?.needsOwnSlot(change, origin) === true;
    const leftOut = needsOwn ? undefined : origin?.socket;
    let receivers = 0;
    for (const socket of channel.sockets) {
      if (socket !== leftOut && socket.data.delivery?.isLive === true) receivers += 1;
    }
    if (receivers > 0) {
      metrics.relayed(receivers);
      const message = JSON.stringify(changeMessage(change));
      if (leftOut === undefined) server?.publish(channel.topic, message);
      else leftOut.publish(channel.topic, message);
    }
    for (const socket of channel.sockets) {
      const { delivery } = socket.data;
      if (socket === leftOut) delivery?.passedOver(change);
      else if (delivery?.isLive === true) delivery.published(change);
    }
  }

  /** Looks for changes nobody told of, and goes on with sockets that had to wait for the database. */
  async function look(): Promise<void> {
    const userIds = [...channels.keys()];
    for (let start = 0; start < userIds.length; start += LOOK_ACCOUNTS) {
      const batch = userIds.slice(start, start + LOOK_ACCOUNTS);
      for (const [userId, seq] of await storage.accountSeqs(batch)) announce(userId, seq);
      for (const userId of batch) {
        for (const socket of channels.get(userId)?.sockets ?? []) void socket.data.delivery?.advance();
      }
      await nextTurn();
    }
  }

  // Ends

  /** [R6] Closes the sockets whose token was revoked. */
  function closeRevoked({ userId, deviceId, tokenGeneration }: Revocation): void {
    for (const socket of channels.get(userId)?.sockets ?? []) {
      const { data } = socket;
      const revoked =
        deviceId === null
          ? data.tokenGeneration < (tokenGeneration ?? Number.POSITIVE_INFINITY)
          : data.deviceId === deviceId;
      if (revoked) end(socket, CLOSE.unauthorized, TOKEN_REVOKED);
    }
  }

  /** [R6] Asks the database about every socket's token: what another instance or a command revoked without our hearing of it. */
  async function recheck(): Promise<void> {
    const sockets = [...channels.values()].flatMap((channel) => [...channel.sockets]);
    for (let start = 0; start < sockets.length; start += RECHECK_SOCKETS) {
      const batch = sockets.slice(start, start + RECHECK_SOCKETS);
      const dead = new Set(await storage.deadAuthors(batch.map(({ data }) => data)));
      for (const socket of batch) {
        if (dead.has(socket.data)) end(socket, CLOSE.unauthorized, TOKEN_REVOKED);
      }
      await nextTurn();
    }
  }

  /** [R6] Closes sockets whose token has ended, and those whose client neither reads nor answers ([R5]). */
  function closeExpired(now: number): void {
    const silentDeadline = performance.now() - config.relay.confirmTimeoutMs;
    for (const channel of channels.values()) {
      for (const socket of channel.sockets) {
        if (socket.data.tokenExpiresAt <= now) end(socket, CLOSE.unauthorized, "The token has expired; sign in again.");
        else if ((socket.data.delivery?.silentSince() ?? Number.POSITIVE_INFINITY) < silentDeadline) {
          end(socket, CLOSE.policyViolation, "What was sent is not read, or its ping not answered.");
        }
      }
    }
  }

  /** Also those that are still being upgraded, as soon as they open. */
  function closeAll(code: number, reason: string): void {
    goodbye = { code, reason };
    for (const channel of channels.values()) {
      for (const socket of channel.sockets) end(socket, code, reason);
    }
  }

  /** Says goodbye, and cuts the socket when the other side does not answer in time. */
  function end(socket: Socket, code: number, reason: string): void {
    leave(socket);
    socket.close(code, reason);
    setTimeout(() => socket.terminate(), config.relay.closeGraceMs).unref();
  }
}
