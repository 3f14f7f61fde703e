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
import type { Change, SlotHead, Storage } from "../storage/storage.ts";
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
  storage: Pick<Storage, "changesAfter" | "slot">;
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

/** A class and no closures: there is one for every socket, and ten thousand idle ones should cost next to nothing. */
export class Delivery {
  readonly #options: DeliveryOptions;
  #sentSeq: number;
  #confirmedSeq: number;
  #live = false;
  #closed = false;
  #reading = false;
  #caughtUp = false;
  /** Messages sent until then. */
  #missedCount = 0;
  #unreadSince: number | undefined;

  // Protocol 1 only.
  #sentCount = 0;
  #confirmedCount = 0;
  #ping: { seq: number; count: number; at: number } | undefined;
  #lastPingAt = 0;
  #pingTimer: Timer | undefined;

  /** What the client last learnt of each slot: its seq, and which message it was last sent of it (0: none). */
  readonly #knownSlots = new Map<number, { seq: number; count: number }>();
  /** [W6] Slots owed to the client, by number, and their seq: sent as soon as the stream has come to it and there is room. */
  readonly #owedWinners = new Map<number, number>();
  #paying: Promise<void> | undefined;
  /** Something has moved since the payment under way began. */
  #payAgain = false;

  constructor(options: DeliveryOptions) {
    this.#options = options;
    this.#sentSeq = options.fromSeq;
    this.#confirmedSeq = options.fromSeq;
  }

  get isLive(): boolean {
    return this.#live;
  }

  /** How many of the messages sent are confirmed. */
  get confirmedCount(): number {
    return this.#confirmedCount;
  }

  /**
   * Since when the client reads nothing of what waits for it, or leaves a ping without its pong; undefined when it does
   * not. Asked now and then, it looks at the buffer: so a client that reads costs nothing.
   */
  silentSince(): number | undefined {
    if (this.#options.socket.getBufferedAmount() === 0) this.#unreadSince = undefined;
    else this.#unreadSince ??= performance.now();
    return this.#unreadSince ?? this.#ping?.at;
  }

  close(): void {
    this.#closed = true;
    this.#live = false;
    clearTimeout(this.#pingTimer);
  }

  // Behind

  /** Sends what is missing, until the socket is live or has to wait for a pong or for its buffer. */
  async advance(): Promise<void> {
    void this.#payWinners();
    if (this.#reading || this.#live || this.#closed) return;
    const { socket, config, confirms } = this.#options;
    const { confirmWindow, catchUpPageItems, catchUpPageBytes } = config.sync;
    this.#reading = true;
    try {
      while (!this.#closed && !this.#goLive()) {
        if (this.#isFull()) return this.#sendPing();
        const room = confirms ? confirmWindow - (this.#sentCount - this.#confirmedCount) : catchUpPageItems;
        if (socket.getBufferedAmount() > catchUpPageBytes) return; // the drain event goes on
        await this.#sendPage(room);
      }
    } catch (error) {
      this.#options.onFault(error);
    } finally {
      this.#reading = false;
    }
  }

  /** The client has read on: who is slow is not silent ([R5]). */
  drained(): void {
    this.#unreadSince = undefined;
    if (this.#ping !== undefined) this.#ping.at = performance.now();
    void this.advance();
  }

  async #sendPage(limit: number): Promise<void> {
    const { storage, channel, config, userId, confirms, emptyUntilSeq } = this.#options;
    const page = await storage.changesAfter(userId, this.#sentSeq, { limit, maxBytes: config.sync.catchUpPageBytes });
    if (this.#closed) return;
    for (const change of page.changes) {
      if (change.seq <= emptyUntilSeq && isDeletion(change)) continue;
      this.#send(change);
      this.#missedCount += 1;
    }
    this.#sentSeq = Math.max(this.#sentSeq, page.throughSeq);
    void this.#payWinners();
    if (confirms) {
      this.#raiseConfirmed(this.#confirmedSeq);
      this.#schedulePing();
    }
    if (page.hasMore) return nextTurn();
    this.#reachEnd();
    channel.reached(this.#sentSeq);
    if (channel.coveredSeq !== undefined && this.#sentSeq > channel.coveredSeq) await channel.caughtUp();
  }

  /** No await between the comparison and the subscription: that is all that [R3] needs. */
  #goLive(): boolean {
    const { socket, channel } = this.#options;
    if (this.#sentSeq !== channel.coveredSeq) return false;
    if (this.#isFull()) return false;
    this.#reachEnd();
    socket.subscribe(channel.topic);
    this.#live = true;
    return true;
  }

  #reachEnd(): void {
    if (this.#caughtUp) return;
    this.#caughtUp = true;
    this.#options.onCaughtUp(this.#sentSeq, this.#missedCount);
  }

  #send(change: Change): void {
    this.#options.socket.send(JSON.stringify(changeMessage(change)));
    this.#count(change);
  }

  #count(change: Change): void {
    if (this.#options.confirms) this.#sentCount += 1;
    if (change.kind !== "slot") return;
    this.#knownSlots.set(change.slotNumber, { seq: change.seq, count: this.#sentCount });
    const owedSeq = this.#owedWinners.get(change.slotNumber);
    if (owedSeq !== undefined && owedSeq <= change.seq) this.#owedWinners.delete(change.slotNumber);
  }

  // Live

  /** The channel published a change on the topic this socket hangs on. */
  published(change: Change): void {
    this.#sentSeq = change.seq;
    this.#count(change);
    void this.#payWinners();
    if (this.#options.confirms) this.#fallBehindOrPing();
  }

  /** The channel published this socket's own change, and left it out. */
  passedOver(change: Change): void {
    if (!this.#live) return;
    this.#sentSeq = change.seq;
    if (change.kind === "slot") {
      const { slotNumber, seq } = change;
      this.#knownSlots.set(slotNumber, { seq, count: this.#knownSlots.get(slotNumber)?.count ?? 0 });
      if ((this.#owedWinners.get(slotNumber) ?? seq) < seq) this.#owedWinners.delete(slotNumber);
    }
    void this.#payWinners();
    if (this.#options.confirms) this.#raiseConfirmed(this.#confirmedSeq);
  }

  /**
   * [R4] Whether this socket's own update of a slot must be sent back to it, because it may be showing another one:
   * it was sent one that it had not confirmed when it sent its own, and may apply that one after its own; or its clock
   * is so far ahead that its timestamp was bounded ([W3]), and an old update that it sent once more has won anew.
   */
  needsOwnSlot(change: Change, origin: { confirmedCount: number; claimedTimestamp: number | null }): boolean {
    if (!this.#options.confirms || change.kind !== "slot") return false;
    return (
      (this.#knownSlots.get(change.slotNumber)?.count ?? 0) > origin.confirmedCount ||
      (origin.claimedTimestamp !== null && change.timestamp < origin.claimedTimestamp)
    );
  }

  /**
   * [W6] Sends what stands to the sender of a write that lost, unless it has learnt of something newer since. Resolves
   * when it is sent, or has to wait for its turn.
   */
  async sendWinner(winner: SlotHead): Promise<void> {
    if (this.#closed || (this.#knownSlots.get(winner.slotNumber)?.seq ?? 0) > winner.seq) return;
    this.#owedWinners.set(winner.slotNumber, winner.seq);
    await this.#payWinners();
  }

  /**
   * One after the other, however many writes have lost: each is read only when it can be sent. A winner that the stream
   * has not come to yet comes with the stream, or right after its own write was passed over.
   */
  #payWinners(): Promise<void> {
    if (this.#owedWinners.size === 0) return Promise.resolve();
    this.#payAgain = true;
    this.#paying ??= this.#payAll()
      .catch((error: unknown) => this.#options.onFault(error))
      .finally(() => {
        this.#paying = undefined;
      });
    return this.#paying;
  }

  async #payAll(): Promise<void> {
    const { storage, userId, confirms } = this.#options;
    while (this.#payAgain) {
      this.#payAgain = false;
      for (const [slotNumber, seq] of this.#owedWinners) {
        if (!this.#hasRoom()) break;
        if (seq > this.#sentSeq) continue;
        const winner = await storage.slot(userId, slotNumber);
        // Meanwhile the stream may have brought it, or may be about to bring what stands there now.
        if (!this.#hasRoom() || !this.#owedWinners.delete(slotNumber)) continue;
        if (winner === null || winner.seq > this.#sentSeq) continue;
        this.#send(winner);
        if (confirms) this.#fallBehindOrPing();
      }
    }
  }

  #hasRoom(): boolean {
    const { socket, config } = this.#options;
    return !this.#closed && !this.#isFull() && socket.getBufferedAmount() <= config.sync.catchUpPageBytes;
  }

  // Confirmation

  #isFull(): boolean {
    const { confirms, config } = this.#options;
    return confirms && this.#sentCount - this.#confirmedCount >= config.sync.confirmWindow;
  }

  /** With a full window a live socket goes back to being behind. */
  #fallBehindOrPing(): void {
    if (!this.#isFull()) return this.#schedulePing();
    const { socket, channel } = this.#options;
    if (this.#live) socket.unsubscribe(channel.topic);
    this.#live = false;
    this.#sendPing();
  }

  /** A quiet socket is pinged at once; a busy one every half window, or when it has waited `confirmDelayMs`. */
  #schedulePing(): void {
    const { confirmDelayMs, confirmWindow } = this.#options.config.sync;
    const unconfirmed = this.#sentCount - this.#confirmedCount;
    if (unconfirmed === 0 || this.#ping !== undefined || this.#closed) return;
    const wait = this.#lastPingAt + confirmDelayMs - performance.now();
    if (wait <= 0 || unconfirmed >= confirmWindow / 2) return this.#sendPing();
    this.#pingTimer ??= setTimeout(() => this.#sendPing(), wait);
  }

  #sendPing(): void {
    clearTimeout(this.#pingTimer);
    this.#pingTimer = undefined;
    if (this.#ping !== undefined || this.#closed) return;
    this.#lastPingAt = performance.now();
    this.#ping = { seq: this.#sentSeq, count: this.#sentCount, at: this.#lastPingAt };
    this.#options.socket.ping(String(this.#sentSeq));
  }

  /** A pong came. One that answers no ping of ours (RFC 6455 §5.5.3 allows it) means nothing. */
  confirm(payload: string): void {
    if (this.#ping === undefined || payload !== String(this.#ping.seq)) return;
    this.#confirmedCount = this.#ping.count;
    this.#raiseConfirmed(this.#ping.seq);
    this.#ping = undefined;
    void this.#payWinners().then(() => {
      this.#fallBehindOrPing();
      if (!this.#live) void this.advance();
    });
  }

  /** With nothing in flight, all that was sent or passed over is confirmed too. */
  #raiseConfirmed(pongSeq: number): void {
    const seq = this.#sentCount === this.#confirmedCount ? this.#sentSeq : pongSeq;
    if (seq <= this.#confirmedSeq) return;
    this.#confirmedSeq = seq;
    this.#options.onConfirmed(seq);
  }
}
