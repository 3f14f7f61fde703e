/**
 * The shapes that the server sends: every answer and every message on a socket, as zod schemas. The API's document is
 * made from them, and the tests hold real answers against them; at run time nothing is validated twice.
 */
import { z } from "zod";
import { HTTP_STATUS, type ErrorCode } from "../errors.ts";

const id = z.string().meta({ format: "uuid", description: "In lower case." });
/** On a socket, where the shipped client needs an id. */
const deviceId = id.describe("Of the device that wrote it; 00000000-0000-0000-0000-000000000000 for none.");
const nullableDeviceId = id.nullable().describe("Of the device that wrote it; null for none.");
const seq = z.int().nonnegative().describe("The account's counter at this change: it only ever grows.");
const time = z.string().meta({ format: "date-time", description: "RFC 3339 in UTC, with milliseconds." });
const timestamp = z.int().positive().describe("Milliseconds since 1970.");
const blob = z.string().meta({ contentEncoding: "base64", description: "As it was sent." });
const slotNumber = z.int().positive();
const cursor = z.string().describe("Opaque: keep it, and send it back as it is.");
const token = z.string().describe("Goes into Authorization: Bearer.");
const contentHash = z.string();

const Limits = z.object({
  slots: z.int(),
  blob_bytes: z.int(),
  body_bytes: z.int(),
  history_items: z.int().describe("An account's; the oldest make room."),
  history_batch_items: z.int(),
  account_bytes: z.int(),
  devices: z.int().describe("An account's; the one that was longest unseen makes room."),
});

const Device = z.object({
  id,
  name: z.string(),
  device_type: z.string(),
  last_seen: time,
  created_at: time,
  connected: z.boolean().describe("It has a socket open, to this instance or, as of the last minute, to another."),
  behind: z
    .int()
    .nonnegative()
    .describe(
      "How many of the account's changes it has not confirmed yet, at most: by pong, or by the cursor it connected with.",
    ),
});

const Slot = z.object({
  slot_number: slotNumber,
  encrypted_blob: blob,
  updated_at: time,
  updated_by: nullableDeviceId,
  seq,
});

const HistoryItem = z.object({
  id,
  encrypted_blob: blob,
  content_hash: contentHash,
  device_id: nullableDeviceId,
  created_at: time,
  expires_at: time.optional(),
  seq,
});

const HistoryPushed = z.object({
  id: id.describe("Of the item that stands: content that was known under another id keeps that one."),
  created_at: time.nullable(),
  seq: seq.nullable(),
  result: z.enum(["applied", "duplicate", "stale", "quota_exceeded"]),
});

const SlotUpdated = z.object({
  type: z.literal("slot_updated"),
  slot_number: slotNumber,
  encrypted_blob: blob,
  updated_by: deviceId,
  timestamp,
  seq,
});
const SlotCleared = z.object({
  type: z.literal("slot_cleared"),
  slot_number: slotNumber,
  cleared_by: deviceId,
  timestamp,
  seq,
});
const HistoryNew = z.object({
  type: z.literal("history_new"),
  id,
  encrypted_blob: blob,
  content_hash: contentHash,
  device_id: deviceId,
  created_at: time,
  expires_at: time.optional(),
  seq,
});
const HistoryDeleted = z.object({ type: z.literal("history_deleted"), id, seq });
const Change = z.discriminatedUnion("type", [SlotUpdated, SlotCleared, HistoryNew, HistoryDeleted]);

const errorCode = z.enum(Object.keys(HTTP_STATUS) as [ErrorCode, ...ErrorCode[]]).describe("For programs.");
const resyncReason = z.string().describe("Why a cursor can't be continued.");

/** What REST answers, by the name it has in the document. */
export const ANSWERS = {
  Error: z.object({
    error: z.string().describe("For people."),
    code: errorCode,
    reason: resyncReason.optional(),
    request_id: id.optional().describe("Of a fault of the server's: its log has more under it."),
  }),
  SignedIn: z.object({ token, user_id: id }),
  Token: z.object({ token }),
  Limits,
  Account: z.object({
    user_id: id,
    email: z.string(),
    created_at: time,
    usage: z.object({ stored_bytes: z.int(), history_items: z.int() }),
    limits: Limits,
  }),
  Export: z.object({
    format: z.literal("clipslot-export"),
    version: z.literal(1),
    exported_at: time,
    account: z.object({ user_id: id, email: z.string(), created_at: time }),
    devices: z.array(Device.omit({ connected: true, behind: true })),
    slots: z.array(Slot),
    history: z.array(HistoryItem).describe("Oldest first."),
  }),
  LinkCode: z.object({ code: z.string() }),
  LinkedKey: z.object({ encrypted_key: z.string() }),
  Device,
  DeviceCreated: z.object({ device_id: id, token }),
  Slot,
  SlotWritten: z.object({
    slot_number: slotNumber,
    updated_at: time,
    updated_by: nullableDeviceId,
    seq,
    result: z
      .enum(["applied", "duplicate", "stale"])
      .describe("stale: something newer stands, and the other fields are its."),
  }),
  HistoryItem,
  HistoryPushed,
  SlotUpdated,
  SlotCleared,
  HistoryNew,
  HistoryDeleted,
  Change,
  Changes: z.object({ changes: z.array(Change), cursor, has_more: z.boolean() }),
  Info: z.object({
    name: z.string(),
    version: z.string(),
    protocols: z.array(z.int()),
    registration: z.enum(["open", "closed", "invite"]),
    limits: Limits,
  }),
  Status: z.object({ status: z.string() }),
} as const;

/** Every message that the server sends on a socket. */
export const SERVER_MESSAGE = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("welcome"),
    protocol: z.int(),
    cursor,
    server_time: time,
    device_id: id,
    limits: Limits,
  }),
  z.object({ type: z.literal("sync_complete"), cursor }),
  SlotUpdated,
  SlotCleared,
  HistoryNew,
  HistoryDeleted,
  z.object({
    type: z.literal("ack"),
    ref: z.string(),
    result: z.enum(["applied", "duplicate", "stale"]),
    seq,
  }),
  z.object({
    type: z.literal("error"),
    message: z.string().describe("For people."),
    code: errorCode,
    ref: z.string().optional(),
    retry_after_ms: z.int().optional(),
  }),
  z.object({ type: z.literal("resync_required"), reason: resyncReason }),
]);
