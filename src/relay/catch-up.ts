/**
 * What one socket has been sent, and what it gets next.
 *
 * A socket is either behind or live. Behind, it reads pages of changes from the database and sends them; live, it
 * hangs on its account's topic and costs nothing. It goes live in the very turn in which what it has been sent equals
 * what the account's channel has published, so that between the two there is no gap, no reordering and no buffer ([R3]).
 *
 * A client of protocol 1 knows no cursor: we keep one for it ([R2]). It is sent at most `confirmWindow` messages, then a
 * WebSocket ping whose payload is the seq; the pong with that payload confirms them. A live socket whose window is
 * full goes back to being behind, and reads on from the database when its pong comes. So the window bounds what is in
 * flight, and nothing is kept for a slow reader ([R5]). Protocol 2 keeps its own cursor and needs none of this.
 */
import type { ServerWebSocket } from "bun";
import type { Config } from "../config.ts";
import { changeMessage, isDeletion } from "../protocol.ts";
import type { Change, SlotChange, Storage } from "../storage/storage.ts";
import { nextTurn } from "../waiting.ts";

export interface Channel {
  readonly topic: string;
  /** Every change up to here has been published; undefined until the first socket has read how far the account is. */
  readonly coveredSeq: number | undefined;
  /** A socket was sent everything up to `seq`: the first one to be so far says where the channel starts. */
  reached(seq: number): void;
  /** Resolves when the channel has published everything it knows of. */
  caughtUp(): Promise<void>;
}

export interface DeliveryOptions {
  socket: ServerWebSocket<unknown>;
  storage: Storage;
  channel: Channel;
  config: Config;
  userId: string;
  /** Send changes after this seq. */
  fromSeq: number;
  /** Deletions up to this seq are no news: the client starts from nothing, later than they were. */
  emptyUntilSeq: number;
  /** Protocol 1: deliveries are confirmed by pong. */
  confirms: boolean;
  /** Called once, when everything up to `seq` has been sent, in so many messages. */
  onCaughtUp: (seq: number, messages: number) => void;
  /** The database could not be read; `advance` may be called again later. */
  onFault: (error: unknown) => void;
  /** Called when the confirmed seq has grown. */
  onConfirmed: (seq: number) => void;
}

export type Delivery = ReturnType<typeof createDelivery>;

export function createDelivery(options: DeliveryOptions) {
  const { socket, storage, channel, config, userId, confirms } = options;
  const { confirmWindow, confirmDelayMs, catchUpPageItems, catchUpPageBytes } = config.sync;

  let sentSeq = options.fromSeq;
  let confirmedSeq = options.fromSeq;
  let live = false;
  let closed = false;
  let reading = false;
  let caughtUp = false;
  /** Messages sent until then. */
  let missedCount = 0;

  // Protocol 1 only.
  let sentCount = 0;
  let confirmedCount = 0;
  let ping: { seq: number; count: number; at: number } | undefined;
  let lastPingAt = 0;
  let pingTimer: Timer | undefined;

  /** What the client last learnt of each slot: its seq, and which message it was last sent of it (0: none). */
  const knownSlots = new Map<number, { seq: number; count: number }>();
  /** [W6] Winners to be sent as soon as the stream has come to them and the window has room. */
  const owedWinners = new Map<number, SlotChange>();

  return {
    get isLive() {
      return live;
    },
    get confirmedSeq() {
      return confirmedSeq;
    },
    /** How many of the messages sent are confirmed. */
    get confirmedCount() {
      return confirmedCount;
    },
    /** Since when the client leaves a ping without its pong, and reads nothing either; undefined when it does not. */
    get silentSince() {
      return ping?.at;
    },
    /** Sends what is missing, until the socket is live or has to wait for a pong or for its buffer. */
    advance,
    /** The client has read on: who is slow is not silent ([R5]). */
    drained() {
      if (ping !== undefined) ping.at = performance.now();
      void advance();
    },
    /** The channel published a change on the topic this socket hangs on. */
    published,
    /** The channel published this socket's own change, and left it out. */
    passedOver,
    needsOwnSlot,
    sendWinner,
    confirm,
    close() {
      closed = true;
      live = false;
      clearTimeout(pingTimer);
    },
  };

  async function advance(): Promise<void> {
    if (reading || live || closed) return;
    reading = true;
    try {
      while (!closed && !goLive()) {
        if (isFull()) return sendPing();
        const room = confirms ? confirmWindow - (sentCount - confirmedCount) : catchUpPageItems;
        if (socket.getBufferedAmount() > catchUpPageBytes) return; // the drain event goes on
        await sendPage(room);
      }
    } catch (error) {
      options.onFault(error);
    } finally {
      reading = false;
    }
  }

  async function sendPage(limit: number): Promise<void> {
    const page = await storage.changesAfter(userId, sentSeq, { limit, maxBytes: catchUpPageBytes });
    if (closed) return;
    for (const change of page.changes) {
      if (change.seq <= options.emptyUntilSeq && isDeletion(change)) continue;
      send(change);
      missedCount += 1;
    }
    sentSeq = Math.max(sentSeq, page.throughSeq);
    payWinners();
    if (confirms) {
      raiseConfirmed(confirmedSeq);
      schedulePing();
    }
    if (page.hasMore) return nextTurn();
    reachEnd();
    channel.reached(sentSeq);
    if (channel.coveredSeq !== undefined && sentSeq > channel.coveredSeq) await channel.caughtUp();
  }

  /** No await between the comparison and the subscription: that is all that [R3] needs. */
  function goLive(): boolean {
    if (sentSeq !== channel.coveredSeq) return false;
    if (isFull()) return false;
    reachEnd();
    socket.subscribe(channel.topic);
    live = true;
    return true;
  }

  function reachEnd(): void {
    if (caughtUp) return;
    caughtUp = true;
    options.onCaughtUp(sentSeq, missedCount);
  }

  function send(change: Change): void {
    socket.send(JSON.stringify(changeMessage(change)));
    count(change);
  }

  function count(change: Change): void {
    if (confirms) sentCount += 1;
    if (change.kind !== "slot") return;
    knownSlots.set(change.slotNumber, { seq: change.seq, count: sentCount });
    if ((owedWinners.get(change.slotNumber)?.seq ?? Number.POSITIVE_INFINITY) <= change.seq)
      owedWinners.delete(change.slotNumber);
  }

  function published(change: Change): void {
    sentSeq = change.seq;
    count(change);
    payWinners();
    if (confirms) fallBehindOrPing();
  }

  function passedOver(change: Change): void {
    if (!live) return;
    sentSeq = change.seq;
    if (change.kind === "slot") {
      knownSlots.set(change.slotNumber, { seq: change.seq, count: knownSlots.get(change.slotNumber)?.count ?? 0 });
      if ((owedWinners.get(change.slotNumber)?.seq ?? change.seq) < change.seq) owedWinners.delete(change.slotNumber);
    }
    payWinners();
    if (confirms) raiseConfirmed(confirmedSeq);
  }

  /**
   * [R4] Whether this socket's own update of a slot must be sent back to it, because it may be showing another one:
   * it was sent one that it had not confirmed when it sent its own, and may apply that one after its own; or its clock
   * is so far ahead that its timestamp was bounded ([W3]), and an old update that it sent once more has won anew.
   */
  function needsOwnSlot(
    change: Change,
    {
      confirmedCount: confirmedAtArrival,
      claimedTimestamp,
    }: { confirmedCount: number; claimedTimestamp: number | null },
  ): boolean {
    if (!confirms || change.kind !== "slot") return false;
    return (
      (knownSlots.get(change.slotNumber)?.count ?? 0) > confirmedAtArrival ||
      (claimedTimestamp !== null && change.timestamp < claimedTimestamp)
    );
  }

  /** [W6] Sends what stands to the sender of a write that lost, unless it has learnt of something newer since. */
  function sendWinner(winner: SlotChange): void {
    if (closed || (knownSlots.get(winner.slotNumber)?.seq ?? 0) > winner.seq) return;
    owedWinners.set(winner.slotNumber, winner);
    payWinners();
    if (confirms) fallBehindOrPing();
  }

  /** A winner that the stream has not come to yet waits: it comes with the stream, or right after its own write was passed over. */
  function payWinners(): void {
    for (const [slotNumber, winner] of owedWinners) {
      if (isFull()) return;
      if (winner.seq > sentSeq) continue;
      owedWinners.delete(slotNumber);
      send(winner);
    }
  }

  // Confirmation

  function isFull(): boolean {
    return confirms && sentCount - confirmedCount >= confirmWindow;
  }

  /** With a full window a live socket goes back to being behind. */
  function fallBehindOrPing(): void {
    if (!isFull()) return schedulePing();
    if (live) socket.unsubscribe(channel.topic);
    live = false;
    sendPing();
  }

  /** A quiet socket is pinged at once; a busy one every half window, or when it has waited `confirmDelayMs`. */
  function schedulePing(): void {
    const unconfirmed = sentCount - confirmedCount;
    if (unconfirmed === 0 || ping !== undefined || closed) return;
    const wait = lastPingAt + confirmDelayMs - performance.now();
    if (wait <= 0 || unconfirmed >= confirmWindow / 2) return sendPing();
    pingTimer ??= setTimeout(sendPing, wait);
  }

  function sendPing(): void {
    clearTimeout(pingTimer);
    pingTimer = undefined;
    if (ping !== undefined || closed) return;
    lastPingAt = performance.now();
    ping = { seq: sentSeq, count: sentCount, at: lastPingAt };
    socket.ping(String(sentSeq));
  }

  /** A pong came. One that answers no ping of ours (RFC 6455 §5.5.3 allows it) means nothing. */
  function confirm(payload: string): void {
    if (ping === undefined || payload !== String(ping.seq)) return;
    confirmedCount = ping.count;
    raiseConfirmed(ping.seq);
    ping = undefined;
    payWinners();
    fallBehindOrPing();
    if (!live) void advance();
  }

  /** With nothing in flight, all that was sent or passed over is confirmed too. */
  function raiseConfirmed(pongSeq: number): void {
    const seq = sentCount === confirmedCount ? sentSeq : pongSeq;
    if (seq <= confirmedSeq) return;
    confirmedSeq = seq;
    options.onConfirmed(seq);
  }
}
