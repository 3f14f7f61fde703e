/**
 * A device that stays in step with its account: it connects, catches up, follows, and comes back when it was cut off.
 * What it writes is shown at once, queued, and sent until the server has answered.
 *
 * Its place in the stream is the cursor of the last sync_complete, and nothing else. What came live after it comes once
 * more after the next connect; the replica knows it by its seq and does nothing. So a cursor never runs ahead of what
 * was applied, whatever broke in between.
 */
import { createApi } from "./api.ts";
import { createBackoff } from "./backoff.ts";
import { openConnection, type Connection, type OpenSocket } from "./connection.ts";
import { createOutbox, type OutboxEntry, type WriteResult } from "./outbox.ts";
import { createReplica } from "./replica.ts";
import { createMemoryStore, type SavedState, type StateStore } from "./store.ts";
import type { Ack, ChangeMessage, ErrorMessage, Limits, ServerMessage, Welcome, Write } from "./wire.ts";

export type Status =
  | "stopped"
  | "connecting"
  /** The server is telling what was missed. */
  | "catching_up"
  | "live"
  /** Cut off; it will try again. */
  | "waiting"
  /** The token no longer counts: it takes a new one, and so a new client. */
  | "signed_out";

export interface SlotView {
  slotNumber: number;
  /** null: cleared. */
  blob: string | null;
  timestamp: number;
  /** This device wrote it and has no answer yet. */
  pending: boolean;
}

export interface HistoryView {
  id: string;
  blob: string;
  contentHash: string;
  /** RFC 3339. */
  createdAt: string;
  expiresAt: string | undefined;
  pending: boolean;
}

export interface SyncClientOptions {
  /** Of the server, such as https://clips.example.org */
  url: string;
  /** A device's. */
  token: string;
  /** Keeps state between runs; left out, a client starts from nothing. */
  store?: StateStore;
  /** What is shown has changed; undefined: in more than this one way, so look at all of it. */
  onChange?: (change: ChangeMessage | undefined) => void;
  onStatus?: (status: Status) => void;
  /** Something went wrong that was no write of ours; also (`store_failed`) the store's. */
  onError?: (error: ErrorMessage) => void;
  /** Writes that may wait for the server, and that may be unanswered at a time. */
  maxQueued?: number;
  maxInFlight?: number;
  /** See connection.ts. */
  silenceMs?: number;
  answerMs?: number;
  /** See backoff.ts. */
  reconnect?: Parameters<typeof createBackoff>[0];
  openSocket?: OpenSocket;
  now?: () => number;
}

export type SyncClient = ReturnType<typeof createSyncClient>;

/** Close codes that mean more than "try again". */
const CLOSE = {
  policyViolation: 1008,
  messageTooBig: 1009,
  tryAgainLater: 1013,
  unauthorized: 4401,
  resyncRequired: 4410,
} as const;
const CLOCK_SKEW_MS = 60_000;

/**
 * A client of protocol 2 ([P1] to [P10]): slots and history of one account as this device shows them, kept in step with
 * the server and across restarts. Nothing happens before `start`.
 */
export function createSyncClient(options: SyncClientOptions) {
  const { url, token, store = createMemoryStore(), now = Date.now } = options;
  const { maxQueued = 1_000, maxInFlight = 16, silenceMs = 30_000, answerMs = 10_000 } = options;
  const openSocket: OpenSocket = options.openSocket ?? ((address, protocols) => new WebSocket(address, protocols));
  const api = createApi(url, (address, init) => fetch(address, { ...init, signal: AbortSignal.timeout(answerMs) }));
  const backoff = createBackoff(options.reconnect);

  let replica = createReplica();
  let outbox = createOutbox({ maxEntries: maxQueued, maxInFlight });
  let cursor: string | undefined;
  let clockOffsetMs = 0;
  let lastTimestamp = 0;
  let deviceId = "";
  let limits: Limits | undefined;

  let status: Status = "stopped";
  let stopped = false;
  let loading: Promise<void> | undefined;
  let connection: Connection | undefined;
  /** Whether the connection began with a cursor. */
  let resumed = false;
  /** When the connection had caught up, by a clock that nobody sets. */
  let liveSince: number | undefined;
  let reconnecting: ReturnType<typeof setTimeout> | undefined;
  /** The server asked for a pause: nothing is sent until this is over, on whatever connection. */
  let holding: ReturnType<typeof setTimeout> | undefined;
  let heldUntil = 0;
  let saving: Promise<void> | undefined;
  let unsaved = false;

  return {
    get status() {
      return status;
    },
    /** Of the server; undefined before the first connection. */
    get limits() {
      return limits;
    },
    /** Writes the server has not answered. */
    get queued() {
      return outbox.size;
    },

    /** Loads what the store holds and begins to connect. Call it once, before anything else. */
    async start(): Promise<void> {
      loading = load();
      await loading;
      if (!stopped) connect();
    },

    /** Disconnects and saves. */
    async stop(): Promise<void> {
      stopped = true;
      // What is not loaded yet must not be saved over.
      if (loading === undefined) return;
      await loading;
      clearTimeout(reconnecting);
      clearTimeout(holding);
      disconnect();
      setStatus("stopped");
      save();
      while (saving !== undefined) await saving;
    },

    /** For the moment in which a machine wakes or its network returns: finds out at once what else takes seconds. */
    wake(): void {
      if (status === "waiting") connect();
      else connection?.probe();
    },

    /** Slots by number, with what this device has written last. */
    slots(): SlotView[] {
      const views = new Map<number, SlotView>();
      for (const { slotNumber, blob, timestamp } of replica.slots.values()) {
        views.set(slotNumber, { slotNumber, blob, timestamp, pending: false });
      }
      for (const { write } of outbox.list()) {
        if (!("slot_number" in write)) continue;
        const blob = write.type === "slot_update" ? write.encrypted_blob : null;
        const { slot_number: slotNumber, timestamp } = write;
        views.set(slotNumber, { slotNumber, blob, timestamp, pending: true });
      }
      return [...views.values()].toSorted((left, right) => left.slotNumber - right.slotNumber);
    },

    /** History, newest first, with what this device has pushed and without what it has deleted. */
    history(): HistoryView[] {
      const views = new Map<string, HistoryView>();
      for (const { id, blob, contentHash, createdAt, expiresAt } of replica.history.values()) {
        views.set(id, { id, blob, contentHash, createdAt, expiresAt, pending: false });
      }
      for (const { write } of outbox.list()) {
        if (write.type === "history_delete") views.delete(write.id);
        if (write.type !== "history_push" || views.has(write.id)) continue;
        views.set(write.id, {
          id: write.id,
          blob: write.encrypted_blob,
          contentHash: write.content_hash,
          createdAt: write.created_at,
          expiresAt: write.expires_at,
          pending: true,
        });
      }
      return [...views.values()].toSorted(
        (left, right) => Date.parse(right.createdAt) - Date.parse(left.createdAt) || (left.id < right.id ? 1 : -1),
      );
    },

    /** What the server has told, with seqs: for those who compare. */
    get replica() {
      return replica;
    },

    /**
     * The promises of the writes never reject; they resolve when the server has answered, which may be in a week, or when
     * it is clear that it would refuse.
     */
    setSlot: (slotNumber: number, blob: string): Promise<WriteResult> =>
      submit({ type: "slot_update", slot_number: slotNumber, encrypted_blob: blob, ...place(slotNumber) }),

    clearSlot: (slotNumber: number): Promise<WriteResult> =>
      submit({ type: "slot_clear", slot_number: slotNumber, ...place(slotNumber) }),

    /** @param item contentHash: the same for the same plaintext, keyed so that it tells nobody what that is ([S4]) */
    pushHistory(item: { blob: string; contentHash: string; id?: string; expiresAt?: string }): Promise<WriteResult> {
      return submit({
        type: "history_push",
        id: item.id ?? crypto.randomUUID(),
        encrypted_blob: item.blob,
        content_hash: item.contentHash,
        created_at: new Date(serverNow()).toISOString(),
        ...(item.expiresAt === undefined ? {} : { expires_at: item.expiresAt }),
      });
    },

    deleteHistory: (id: string): Promise<WriteResult> => submit({ type: "history_delete", id }),
  };

  // Writing

  /** This device's clock, set right by what the server said of its own. */
  function serverNow(): number {
    return now() + clockOffsetMs;
  }

  /**
   * What places a write after what this device shows: a timestamp above everything it knows of the slot, and the seq it
   * was written upon, which wins whatever the clocks say as long as nobody wrote in between ([P7]).
   */
  function place(slotNumber: number): { timestamp: number; base_seq?: number } {
    const known = replica.slots.get(slotNumber);
    lastTimestamp = Math.max(serverNow(), lastTimestamp + 1, (known?.timestamp ?? 0) + 1);
    return { timestamp: lastTimestamp, ...(known === undefined ? {} : { base_seq: known.seq }) };
  }

  function submit(write: Write): Promise<WriteResult> {
    const result = outbox.add(write);
    options.onChange?.(undefined);
    save();
    pump();
    return result;
  }

  /** Only a device that has caught up sends: so it knows of its own earlier writes when their answers come. */
  function pump(): void {
    if (status !== "live" || connection === undefined || holding !== undefined) return;
    for (const { ref, write } of outbox.take()) connection.send(ref, write);
  }

  /** Writes have left the outbox without an answer that changes anything else. */
  function outboxShrank(): void {
    options.onChange?.(undefined);
    save();
    pump();
  }

  // Connecting

  function connect(): void {
    clearTimeout(reconnecting);
    resumed = cursor !== undefined;
    if (!resumed) replica.startOver();
    connection = openConnection({
      url,
      token,
      cursor,
      openSocket,
      silenceMs,
      answerMs,
      onMessage: receive,
      onClose: closed,
    });
    setStatus("connecting");
  }

  function disconnect(): void {
    connection?.close();
    connection = undefined;
    liveSince = undefined;
    replica.abandon();
    outbox.requeue();
  }

  function closed(code: number, opened: boolean): void {
    // Who was asked to come back more slowly does, however long the connection held.
    const isSlowDown = code === CLOSE.policyViolation || code === CLOSE.tryAgainLater;
    const heldMs = liveSince === undefined || isSlowDown ? 0 : performance.now() - liveSince;
    const refused = code === CLOSE.messageTooBig && outbox.refuseLargest();
    disconnect();
    if (code === CLOSE.unauthorized) return signOut();
    if (code === CLOSE.resyncRequired) cursor = undefined;
    const pauseMs = code === CLOSE.resyncRequired && resumed ? 0 : backoff.next(heldMs);
    reconnecting = setTimeout(opened ? connect : () => void connectIfSignedIn(), pauseMs);
    setStatus("waiting");
    if (refused) outboxShrank();
  }

  function signOut(): void {
    clearTimeout(reconnecting);
    setStatus("signed_out");
  }

  /** A socket that was not let in does not say whether the token or the network is at fault. */
  async function connectIfSignedIn(): Promise<void> {
    const signedIn = await api.isSignedIn(token).catch(() => true);
    if (status !== "waiting") return;
    if (signedIn) connect();
    else signOut();
  }

  // Receiving

  function receive(message: ServerMessage): void {
    switch (message.type) {
      case "welcome":
        return welcomed(message);
      case "slot_updated":
      case "slot_cleared":
      case "history_new":
      case "history_deleted":
        if (message.type === "history_deleted") outbox.noteDeletion(message.id, message.seq);
        return apply(message);
      case "sync_complete":
        cursor = message.cursor;
        if (replica.finish()) options.onChange?.(undefined);
        liveSince = performance.now();
        setStatus("live");
        save();
        return pump();
      case "resync_required":
        // The close that follows brings us back, with no cursor.
        cursor = undefined;
        return;
      case "ack":
        return acknowledged(message);
      case "error":
        return failed(message);
    }
  }

  function welcomed(welcome: Welcome): void {
    clockOffsetMs = Date.parse(welcome.server_time) - now();
    lastTimestamp = 0; // it may have come from a clock that was wrong
    ({ device_id: deviceId, limits } = welcome);
    setStatus("catching_up");
    if (outbox.limitBlobs(limits.blob_bytes)) outboxShrank();
  }

  function apply(change: ChangeMessage): void {
    if (!replica.apply(change)) return;
    options.onChange?.(change);
    save();
  }

  /** An own write is not sent back to us: its answer says at which seq it stands, or that something else does. */
  function acknowledged(ack: Ack): void {
    const entry = outbox.acknowledge(ack);
    if (entry === undefined) return;
    const change = ack.result === "stale" ? undefined : toChange(entry, ack);
    const isNews = change !== undefined && replica.apply(change);
    options.onChange?.(isNews ? change : undefined);
    save();
    pump();
  }

  function toChange({ write, deletedAtSeq }: OutboxEntry, { seq, result }: Ack): ChangeMessage | undefined {
    switch (write.type) {
      case "slot_update":
        return { ...write, type: "slot_updated", updated_by: deviceId, timestamp: bounded(write.timestamp), seq };
      case "slot_clear":
        return { ...write, type: "slot_cleared", cleared_by: deviceId, timestamp: bounded(write.timestamp), seq };
      case "history_push":
        // A duplicate stands under an id that we know already, or that is not ours ([W7]).
        if (result === "duplicate" || deletedAtSeq > seq) return undefined;
        return { ...write, type: "history_new", device_id: deviceId, seq };
      case "history_delete":
        return { type: "history_deleted", id: write.id, seq };
    }
  }

  /** [W3] The server takes a time that is further ahead as its own now. */
  function bounded(timestamp: number): number {
    return timestamp > serverNow() + CLOCK_SKEW_MS ? serverNow() : timestamp;
  }

  function failed(error: ErrorMessage): void {
    if (error.ref === undefined) return options.onError?.(error);
    const queued = outbox.size;
    const retryMs = outbox.fail(error);
    if (retryMs !== undefined) hold(retryMs);
    if (outbox.size < queued) outboxShrank();
  }

  /** Of several pauses the one that ends last counts. */
  function hold(milliseconds: number): void {
    const until = performance.now() + milliseconds;
    if (holding !== undefined && until <= heldUntil) return;
    heldUntil = until;
    clearTimeout(holding);
    holding = setTimeout(() => {
      holding = undefined;
      pump();
    }, milliseconds);
  }

  // Keeping

  async function load(): Promise<void> {
    const saved = await store.load();
    if (saved === undefined) return;
    replica = createReplica(saved);
    outbox = createOutbox({ saved: saved.outbox, maxEntries: maxQueued, maxInFlight });
    ({ cursor, clockOffsetMs } = saved);
  }

  function setStatus(next: Status): void {
    if (next === status) return;
    status = next;
    options.onStatus?.(next);
  }

  /** One save at a time; what changes meanwhile is in the next one. */
  function save(): void {
    unsaved = true;
    saving ??= saveAll().finally(() => {
      saving = undefined;
    });
  }

  async function saveAll(): Promise<void> {
    while (unsaved) {
      unsaved = false;
      try {
        await store.save(currentState());
      } catch (error) {
        // Nothing is lost while the client runs; the next change tries again.
        const message = error instanceof Error ? error.message : "The state could not be saved.";
        options.onError?.({ type: "error", code: "store_failed", message });
        return;
      }
    }
  }

  function currentState(): SavedState {
    return {
      cursor,
      slots: [...replica.slots.values()],
      history: [...replica.history.values()],
      outbox: outbox.list().map(({ ref, write }) => ({ ref, write })),
      clockOffsetMs,
    };
  }
}
