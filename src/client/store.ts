/**
 * Where a client keeps its state between two runs. The whole state is saved at once, so a cursor is never kept without
 * the changes before it; a store has to write it in one piece (a transaction, or a new file that is renamed).
 */
import type { QueuedWrite } from "./outbox.ts";
import type { HistoryItem, Slot } from "./replica.ts";

export interface SavedState {
  /** Of the last sync_complete: everything up to it is in `slots` and `history`. */
  cursor: string | undefined;
  slots: Slot[];
  history: HistoryItem[];
  /** Writes the server has not answered. */
  outbox: QueuedWrite[];
  /** How far the server's clock was ahead of this device's. */
  clockOffsetMs: number;
}

/** One store an account and device. Calls never overlap. */
export interface StateStore {
  load(): Promise<SavedState | undefined>;
  save(state: SavedState): Promise<void>;
}

/** Outlives a client, not the process. */
export function createMemoryStore(): StateStore {
  let kept: string | undefined;
  return {
    load: async () => (kept === undefined ? undefined : (JSON.parse(kept) as SavedState)),
    save: async (state) => {
      kept = JSON.stringify(state);
    },
  };
}
