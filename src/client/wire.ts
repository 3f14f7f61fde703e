/** The messages of protocol 2, as far as a client needs them. Unknown fields and unknown types are ignored ([S6]). */

/** What a client should know before it runs into it. */
export interface Limits {
  slots: number;
  blob_bytes: number;
  body_bytes: number;
  history_items: number;
  history_batch_items: number;
  account_bytes: number;
  devices: number;
}

export interface Welcome {
  type: "welcome";
  protocol: number;
  /** Where this connection starts. */
  cursor: string;
  /** RFC 3339: by it a device learns how wrong its own clock is. */
  server_time: string;
  device_id: string;
  limits: Limits;
}

export interface SyncComplete {
  type: "sync_complete";
  cursor: string;
}

export interface ResyncRequired {
  type: "resync_required";
  reason: string;
}

export interface SlotUpdated {
  type: "slot_updated";
  slot_number: number;
  encrypted_blob: string;
  updated_by: string;
  timestamp: number;
  seq: number;
}

export interface SlotCleared {
  type: "slot_cleared";
  slot_number: number;
  cleared_by: string;
  timestamp: number;
  seq: number;
}

export interface HistoryNew {
  type: "history_new";
  id: string;
  encrypted_blob: string;
  content_hash: string;
  device_id: string;
  created_at: string;
  expires_at?: string;
  seq: number;
}

export interface HistoryDeleted {
  type: "history_deleted";
  id: string;
  seq: number;
}

/** What happened to the account's data, in seq order. */
export type ChangeMessage = SlotUpdated | SlotCleared | HistoryNew | HistoryDeleted;

/** The answer to a write. */
export interface Ack {
  type: "ack";
  ref: string;
  result: "applied" | "stale" | "duplicate";
  seq: number;
}

export interface ErrorMessage {
  type: "error";
  message: string;
  code: string;
  ref?: string;
  retry_after_ms?: number;
}

export type ServerMessage = Welcome | SyncComplete | ResyncRequired | ChangeMessage | Ack | ErrorMessage;

/** What a client asks the server to change. Sent with a `ref`, by which the answer names it. */
export type Write =
  | { type: "slot_update"; slot_number: number; encrypted_blob: string; timestamp: number; base_seq?: number }
  | { type: "slot_clear"; slot_number: number; timestamp: number; base_seq?: number }
  | {
      type: "history_push";
      id: string;
      encrypted_blob: string;
      content_hash: string;
      created_at: string;
      expires_at?: string;
    }
  | { type: "history_delete"; id: string };

/** @returns undefined for what is no message at all; its fields are the server's promise */
export function parseMessage(text: string): ServerMessage | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  const isMessage = typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
  return isMessage ? (value as ServerMessage) : undefined;
}
