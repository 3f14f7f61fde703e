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
  /** The server will not take it, ever (or, with the code `outbox_full`, it was never queued). */
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

export type Outbox = ReturnType<typeof createOutbox>;

export interface OutboxOptions {
  saved?: readonly QueuedWrite[];
  /** Writes that may wait. */
  maxEntries: number;
  /** Writes that may be unanswered at a time. */
  maxInFlight: number;
}

export function createOutbox({ saved = [], maxEntries, maxInFlight }: OutboxOptions) {
  const entries = new Map<string, OutboxEntry>();
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
        const mayGo = !entry.inFlight && !waiting.has(key) && inFlight < maxInFlight;
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
        return error.retry_after_ms ?? RETRY_MS;
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

  function finish(entry: OutboxEntry, result: WriteResult): void {
    entries.delete(entry.ref);
    entry.done(result);
  }
}

function newEntry(ref: string, write: Write, done: (result: WriteResult) => void): OutboxEntry {
  return { ref, write, inFlight: false, deletedAtSeq: 0, done };
}

function keyOf(write: Write): string {
  return "slot_number" in write ? `slot ${write.slot_number}` : `item ${write.id}`;
}
