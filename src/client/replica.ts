/**
 * What the server has told this device: slots and history, and of each the seq it stands at.
 *
 * There is one rule. The server decides who wins and numbers what it decided; the greater seq is what stands. So a
 * change that comes twice, or late, does nothing, and no clock is ever compared here.
 *
 * A device that starts from nothing is told what lives and not what was deleted. What it may still hold from before
 * would stay for ever; so such a reading goes into a fresh copy, which takes the old one's place when it is complete.
 */
import type { ChangeMessage } from "./wire.ts";

export interface Slot {
  slotNumber: number;
  /** null: cleared. */
  blob: string | null;
  timestamp: number;
  updatedBy: string;
  seq: number;
}

export interface HistoryItem {
  id: string;
  blob: string;
  contentHash: string;
  /** Who pushed it. */
  deviceId: string;
  /** RFC 3339. */
  createdAt: string;
  expiresAt: string | undefined;
  seq: number;
}

interface Copy {
  slots: Map<number, Slot>;
  history: Map<string, HistoryItem>;
}

/** @param saved what an earlier run knew, up to its cursor */
export function createReplica(saved: { slots: Slot[]; history: HistoryItem[] } = { slots: [], history: [] }) {
  let shown: Copy = {
    slots: new Map(saved.slots.map((slot) => [slot.slotNumber, slot])),
    history: new Map(saved.history.map((item) => [item.id, item])),
  };
  let fresh: Copy | undefined;

  return {
    get slots(): ReadonlyMap<number, Slot> {
      return shown.slots;
    },
    get history(): ReadonlyMap<string, HistoryItem> {
      return shown.history;
    },
    /** @returns whether it changed what is shown */
    apply: (change: ChangeMessage): boolean => applyTo(fresh ?? shown, change) && fresh === undefined,
    /** The server begins to tell everything from the start. */
    startOver() {
      fresh = { slots: new Map(), history: new Map() };
    },
    /** It has told everything. @returns whether what is shown was replaced */
    finish(): boolean {
      if (fresh === undefined) return false;
      shown = fresh;
      fresh = undefined;
      return true;
    },
    /** It broke off. */
    abandon() {
      fresh = undefined;
    },
  };
}

function applyTo({ slots, history }: Copy, change: ChangeMessage): boolean {
  switch (change.type) {
    case "slot_updated":
    case "slot_cleared": {
      const known = slots.get(change.slot_number)?.seq ?? 0;
      if (known > change.seq) return false;
      slots.set(change.slot_number, toSlot(change));
      return known < change.seq;
    }
    case "history_new": {
      const known = history.get(change.id)?.seq ?? 0;
      if (known > change.seq) return false;
      history.set(change.id, toItem(change));
      return known < change.seq;
    }
    case "history_deleted": {
      const known = history.get(change.id);
      return known !== undefined && known.seq < change.seq && history.delete(change.id);
    }
  }
}

function toSlot(change: Extract<ChangeMessage, { slot_number: number }>): Slot {
  return {
    slotNumber: change.slot_number,
    blob: change.type === "slot_updated" ? change.encrypted_blob : null,
    timestamp: change.timestamp,
    updatedBy: change.type === "slot_updated" ? change.updated_by : change.cleared_by,
    seq: change.seq,
  };
}

function toItem(change: Extract<ChangeMessage, { type: "history_new" }>): HistoryItem {
  return {
    id: change.id,
    blob: change.encrypted_blob,
    contentHash: change.content_hash,
    deviceId: change.device_id,
    createdAt: change.created_at,
    expiresAt: change.expires_at,
    seq: change.seq,
  };
}
