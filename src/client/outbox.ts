/**
 * Writes that the server has not answered yet. A write keeps its id and its timestamp however often it is sent, so
 * sending it again is safe: the server knows it, or decides as it would have decided then.
 *
 * Writes to different slots and items go out together; of the writes to one slot or item each waits for the answer to
 * the one before, so that a retry never overtakes.
 */
import type { Ack, ErrorMessage, Write } from "./wire.ts";

/** What became of a write. */
export type WriteResult =
  | { result: "applied" | "stale" | "duplicate"; seq: number }
  /**
   * The server will not take it, ever; or it was never sent: `payload_too_large` for what is above the server's limit,
   * `outbox_full` when too many wait already.
   */
  | { result: "refused"; code: string; message: string }
  /** A newer write to the same slot took its place before it was sent. */
  | { result: "superseded" };

/** As it is saved. */
export interface QueuedWrite {
  ref: string;
  write: Write;
}

export interface OutboxEntry extends QueuedWrite {
  /** On this connection. */
  inFlight: boolean;
  /** A push: the item was deleted at this seq while the answer was on its way. */
  deletedAtSeq: number;
  done: (result: WriteResult) => void;
}

/** Errors that say nothing against the write: it may be taken later. */
const TEMPORARY: ReadonlySet<string> = new Set(["busy", "unavailable", "rate_limited", "disk_full", "internal"]);
const RETRY_MS = 5_000;
/** The server counts what it refuses as well, and cuts off who is refused about once a second for long ([E4]). */
const RATE_LIMITED_MS = 1_000;

export interface OutboxOptions {
  saved?: readonly QueuedWrite[];
  /** Writes that may wait. */
  maxEntries: number;
  /** Writes that may be unanswered at a time. */
  maxInFlight: number;
}

/** @param saved what an earlier run left unanswered, oldest first; it is sent again with the refs it had */
export function createOutbox({ saved = [], maxEntries, maxInFlight }: OutboxOptions) {
  const entries = new Map<string, OutboxEntry>();
  let maxBlobBytes = Number.POSITIVE_INFINITY;
  /** 1 once the server found that we send too fast, until nothing waits any more: then little is refused at a time. */
  let mayBeInFlight = maxInFlight;
  for (const { ref, write } of saved)
    entries.set(
      ref,
      newEntry(ref, write, () => {}),
    );

  return {
    get size() {
      return entries.size;
    },
    /** Oldest first. */
    list: (): OutboxEntry[] => [...entries.values()],

    add(write: Write): Promise<WriteResult> {
      if (isTooLarge(write)) return Promise.resolve(tooLarge());
      const key = keyOf(write);
      if ("slot_number" in write) {
        for (const entry of entries.values()) {
          if (keyOf(entry.write) === key && !entry.inFlight) finish(entry, { result: "superseded" });
        }
      }
      if (entries.size >= maxEntries) {
        const message = `${entries.size} writes wait for the server already.`;
        return Promise.resolve({ result: "refused", code: "outbox_full", message });
      }
      const { promise, resolve } = Promise.withResolvers<WriteResult>();
      const ref = crypto.randomUUID();
      entries.set(ref, newEntry(ref, write, resolve));
      return promise;
    },

    /** The server's limit became known: what is above it is refused, now and from now on. @returns whether anything was */
    limitBlobs(bytes: number): boolean {
      maxBlobBytes = bytes;
      const refused = [...entries.values()].filter(({ write }) => isTooLarge(write));
      for (const entry of refused) finish(entry, tooLarge());
      return refused.length > 0;
    },

    /**
     * The server closed the connection over a message that was too large, and does not say which: whichever it was, the
     * largest is too large as well. @returns whether there was one
     */
    refuseLargest(): boolean {
      const [largest] = [...entries.values()]
        .filter(({ inFlight }) => inFlight)
        .toSorted((left, right) => messageBytes(right) - messageBytes(left));
      if (largest === undefined) return false;
      const message = `A message of ${messageBytes(largest)} bytes is more than the server takes.`;
      finish(largest, { result: "refused", code: "payload_too_large", message });
      return true;
    },

    /** Marks the writes that may go out now as in flight, and returns them. */
    take(): OutboxEntry[] {
      const waiting = new Set<string>();
      const taken: OutboxEntry[] = [];
      let inFlight = 0;
      for (const entry of entries.values()) {
        if (entry.inFlight) inFlight += 1;
      }
      for (const entry of entries.values()) {
        const key = keyOf(entry.write);
        const mayGo = !entry.inFlight && !waiting.has(key) && inFlight < mayBeInFlight;
        waiting.add(key);
        if (!mayGo) continue;
        entry.inFlight = true;
        inFlight += 1;
        taken.push(entry);
      }
      return taken;
    },

    /** The connection broke: whatever was in flight may or may not have arrived. */
    requeue() {
      for (const entry of entries.values()) entry.inFlight = false;
    },

    /** @returns the write that was answered; undefined when it is not known (any more) */
    acknowledge(ack: Ack): OutboxEntry | undefined {
      const entry = entries.get(ack.ref);
      if (entry !== undefined) finish(entry, { result: ack.result, seq: ack.seq });
      return entry;
    },

    /** @returns how long to wait before trying again; undefined when the write was refused for good */
    fail(error: ErrorMessage): number | undefined {
      const entry = error.ref === undefined ? undefined : entries.get(error.ref);
      if (entry === undefined) return undefined;
      if (error.retry_after_ms !== undefined || TEMPORARY.has(error.code)) {
        entry.inFlight = false;
        const retryMs = error.retry_after_ms ?? RETRY_MS;
        if (error.code !== "rate_limited") return retryMs;
        mayBeInFlight = 1;
        return Math.max(retryMs, RATE_LIMITED_MS);
      }
      finish(entry, { result: "refused", code: error.code, message: error.message });
      return undefined;
    },

    /** The stream may tell of an item's end before the answer tells of its beginning. */
    noteDeletion(id: string, seq: number) {
      for (const entry of entries.values()) {
        if (entry.write.type === "history_push" && entry.write.id === id) entry.deletedAtSeq = seq;
      }
    },
  };

  function isTooLarge(write: Write): boolean {
    return "encrypted_blob" in write && blobBytes(write.encrypted_blob) > maxBlobBytes;
  }

  function tooLarge(): WriteResult {
    const message = `A blob may have at most ${maxBlobBytes} bytes on this server.`;
    return { result: "refused", code: "payload_too_large", message };
  }

  function finish(entry: OutboxEntry, result: WriteResult): void {
    entries.delete(entry.ref);
    if (entries.size === 0) mayBeInFlight = maxInFlight;
    entry.done(result);
  }
}

function newEntry(ref: string, write: Write, done: (result: WriteResult) => void): OutboxEntry {
  return { ref, write, inFlight: false, deletedAtSeq: 0, done };
}

function keyOf(write: Write): string {
  return "slot_number" in write ? `slot ${write.slot_number}` : `item ${write.id}`;
}

/** What base64 text stands for; whether it is any is for the server to say. */
function blobBytes(text: string): number {
  const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  return Math.floor((text.length * 3) / 4) - padding;
}

function messageBytes({ ref, write }: QueuedWrite): number {
  return new TextEncoder().encode(JSON.stringify({ ...write, ref })).length;
}
