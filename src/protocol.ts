/**
 * The shapes that cross the edge: every REST body, every query and every frame, as zod schemas, and the types they
 * infer. PROTOCOL.md beside this file says what they mean.
 */
import { z } from "zod";
import type { Config } from "./config.ts";
import type { Change } from "./storage/storage.ts";

/** What stands for "no device" where the shipped client needs a UUID (RFC 9562 §5.9). */
export const NIL_UUID = "00000000-0000-0000-0000-000000000000";

/** Any UUID, in either case; one id, so it is lower-cased. */
export const uuid = z
  .string()
  .regex(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i, "must be a UUID")
  .toLowerCase()
  .meta({ format: "uuid" });

/** NUL and lone surrogates can't be stored as text; other control characters have no place in a name. */
const cleanText = (text: string) => text.isWellFormed() && !/\p{Cc}/u.test(text);

/** Milliseconds since 1970 ([W3]). */
export const timestamp = z
  .int("must be a whole number of milliseconds since 1970")
  .positive("must be above 0")
  .describe("When it was copied, in milliseconds since 1970.");

/** A time outside a `timestamp` field: RFC 3339 in, milliseconds inside, RFC 3339 in UTC out. */
export const time = z.iso
  .datetime({ offset: true, error: "must be an RFC 3339 time" })
  .transform((text) => Date.parse(text))
  .pipe(z.int().positive())
  .meta({ format: "date-time" });

/** RFC 3339 in UTC, of milliseconds since 1970. */
export const formatTime = (milliseconds: number): string => new Date(milliseconds).toISOString();

/**
 * The number of bytes that canonical base64 (RFC 4648 §4, padded, unused bits zero, §3.5) stands for.
 * @returns null for anything else
 */
function base64ByteLength(text: string): number | null {
  if (text.length % 4 !== 0) return null;
  const bytes = Buffer.from(text, "base64");
  return bytes.toString("base64") === text ? bytes.length : null;
}

/** The query of the socket's address. */
export const socketQuery = z.object({
  protocol: z.enum(["1", "2"], { error: "must be 1 or 2" }).default("1"),
  cursor: z.string().max(128).optional().describe("Protocol 2: send what is newer than this."),
  token: z.string().optional().describe("For clients that can set no header."),
});

export type Protocol = ReturnType<typeof createProtocol>;

/** Builds the schemas; some bounds are settings. */
export function createProtocol(config: Config) {
  const blob = z
    .string()
    .check((context) => {
      const length = base64ByteLength(context.value);
      const fault =
        length === null
          ? "must be base64: standard alphabet, padded, canonical"
          : length === 0
            ? "must not be empty"
            : length > config.maxBlobBytes
              ? `must be at most ${config.maxBlobBytes} bytes`
              : undefined;
      if (fault !== undefined) {
        context.issues.push({
          code: "custom",
          message: fault,
          input: context.value,
          params: { tooLarge: (length ?? 0) > config.maxBlobBytes },
        });
      }
    })
    .meta({
      description: "Ciphertext in base64: standard alphabet, padded, canonical.",
      contentEncoding: "base64",
      minLength: 4,
      maxLength: Math.ceil(config.maxBlobBytes / 3) * 4,
    });
  const slotRange = `must be a whole number from 1 to ${config.sync.slotCount}`;
  const slotNumber = z.int(slotRange).min(1, slotRange).max(config.sync.slotCount, slotRange);
  const contentHash = z
    .string()
    .regex(/^[A-Za-z0-9+/=_:.-]+$/, "may hold letters, digits and + / = _ : . -")
    .max(config.sync.contentHashMaxLength)
    .describe("What makes two items of an account the same.");
  const ref = z.string().max(config.sync.refMaxLength).describe("Comes back in the answer to this message.").optional();
  const baseSeq = z
    .int()
    .nonnegative()
    .describe(
      "The seq of the slot's content that this replaces: if it still stands, this wins whatever the clocks say.",
    )
    .optional();
  const historyItem = z.object({
    id: uuid,
    encrypted_blob: blob,
    content_hash: contentHash,
    created_at: time.optional().describe("When it was copied; left out: now."),
    expires_at: time.optional().describe("When it is to be removed, everywhere."),
  });
  const password = z
    .string()
    .min(1, "must not be empty")
    .refine((text) => text.isWellFormed() && Buffer.byteLength(text) <= config.auth.passwordMaxBytes, {
      error: `must be well-formed text of at most ${config.auth.passwordMaxBytes} bytes`,
    });
  const newPassword = password.refine((text) => text.length >= config.auth.passwordMinLength, {
    error: `must have at least ${config.auth.passwordMinLength} characters`,
  });
  const email = z
    .string()
    .max(config.auth.emailMaxLength)
    .refine(cleanText, "must not hold control characters")
    .pipe(z.string().trim());
  const name = (max: number) => z.string().trim().min(1).max(max).refine(cleanText, "must not hold control characters");

  return {
    credentials: z.object({ email, password }),
    registration: z.object({
      email: email.pipe(z.email("must be an e-mail address")),
      password: newPassword,
      invite: z.string().max(128).optional().describe("Needed where registration is by invitation."),
    }),
    device: z.object({
      name: name(config.auth.deviceNameMaxLength),
      device_type: name(config.auth.deviceTypeMaxLength),
    }),
    slotPut: z.object({
      encrypted_blob: blob,
      timestamp: timestamp.nullish().describe("When it was copied; left out, this wins over whatever stands there."),
      base_seq: baseSeq,
    }),
    /** The path's `:number`. */
    slotNumber: z
      .string()
      .regex(/^[1-9]\d?$/, slotRange)
      .transform(Number)
      .pipe(slotNumber),
    historyItem,
    historyPush: z.union([historyItem, z.array(historyItem).min(1).max(config.sync.historyBatchItems)]),
    historyQuery: z.object({
      limit: queryInteger(1, config.sync.historyPageItemsMax).default(config.sync.historyPageItems),
      offset: queryInteger(0, Number.MAX_SAFE_INTEGER).default(0),
      before: z.string().max(128).optional().describe("From the Link of an earlier page; in place of offset."),
    }),
    changesQuery: z.object({
      cursor: z.string().max(128).optional().describe("From an earlier answer; left out: from the beginning."),
      limit: queryInteger(1, config.sync.changesPageItemsMax).default(config.sync.changesPageItems),
    }),
    passwordChange: z.object({ current_password: password, new_password: newPassword }),
    accountDeletion: z.object({ password }),
    linkCodeRequest: z.object({
      encrypted_key: z.string().min(1).max(4096).refine(cleanText, "must not hold control characters"),
    }),
    linkCodeRedemption: z.object({ code: z.string().max(64) }),
    /** Every message a client may send on a socket. */
    clientMessage: z.discriminatedUnion("type", [
      z.object({
        type: z.literal("slot_update"),
        slot_number: slotNumber,
        encrypted_blob: blob,
        timestamp,
        base_seq: baseSeq,
        ref,
      }),
      z.object({
        type: z.literal("slot_clear"),
        slot_number: slotNumber,
        timestamp,
        base_seq: baseSeq,
        ref,
      }),
      historyItem.extend({ type: z.literal("history_push"), ref }),
      z.object({ type: z.literal("history_delete"), id: uuid, ref }),
    ]),
  };
}

/** As createProtocol, but built when something is first checked: a server is ready the sooner. */
export function createProtocolOnDemand(config: Config): Protocol {
  let built: Protocol | undefined;
  return new Proxy({} as Protocol, { get: (_, name) => (built ??= createProtocol(config))[name as keyof Protocol] });
}

export type ClientMessage = z.infer<Protocol["clientMessage"]>;

function queryInteger(min: number, max: number) {
  return z
    .string()
    .regex(/^\d{1,15}$/, "must be a whole number")
    .transform(Number)
    .pipe(z.int().min(min).max(max));
}

/** The message that tells a device of a change: the same object on a socket and in GET /api/sync/changes. */
export function changeMessage(change: Change) {
  switch (change.kind) {
    case "slot":
      return change.blob === null
        ? {
            type: "slot_cleared",
            slot_number: change.slotNumber,
            cleared_by: change.updatedBy ?? NIL_UUID,
            timestamp: change.timestamp,
            seq: change.seq,
          }
        : {
            type: "slot_updated",
            slot_number: change.slotNumber,
            encrypted_blob: change.blob,
            updated_by: change.updatedBy ?? NIL_UUID,
            timestamp: change.timestamp,
            seq: change.seq,
          };
    case "history":
      return {
        type: "history_new",
        id: change.id,
        encrypted_blob: change.blob,
        content_hash: change.contentHash,
        device_id: change.deviceId ?? NIL_UUID,
        created_at: formatTime(change.createdAt),
        ...(change.expiresAt === null ? {} : { expires_at: formatTime(change.expiresAt) }),
        seq: change.seq,
      };
    case "history_deletion":
      return { type: "history_deleted", id: change.id, seq: change.seq };
  }
}

/** No news to a client that starts from nothing, later than it happened. */
export function isDeletion(change: Change): boolean {
  return change.kind === "history_deletion" || (change.kind === "slot" && change.blob === null);
}
