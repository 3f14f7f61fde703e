/**
 * The tables in PostgreSQL. Every primary key and index starts with the account, so that no account can reach
 * another's rows and one account's data can live on one shard; the exceptions are the address an account is found by,
 * and invites, which belong to none yet.
 *
 * drizzle-kit makes the tables from this file; what it can't express (functions, storage parameters)
 * stands in the custom migrations of drizzle/postgres.
 */
import { sql } from "drizzle-orm";
import {
  bigint,
  boolean,
  check,
  customType,
  foreignKey,
  index,
  integer,
  pgTable,
  primaryKey,
  text,
  uniqueIndex,
  uuid,
} from "drizzle-orm/pg-core";

/** Milliseconds as PostgreSQL reads a time. */
export const instantText = (milliseconds: number): string => new Date(milliseconds).toISOString();

/** A time: timestamptz(3) in the database, integer milliseconds in the process. Read in a session whose zone is UTC. */
const instant = customType<{ data: number; driverData: string }>({
  dataType: () => "timestamptz(3)",
  toDriver: instantText,
  // "2026-01-02 03:04:05.678+00", the ISO style of PostgreSQL in UTC.
  fromDriver: (value) => Date.parse(`${value.slice(0, -"+00".length).replace(" ", "T")}Z`),
});

/** A blob: bytes in the database, canonical base64 in the process. */
const blob = customType<{ data: string; driverData: Buffer }>({
  dataType: () => "bytea",
  toDriver: (base64) => Buffer.from(base64, "base64"),
  fromDriver: (bytes) => bytes.toString("base64"),
});

/** Counts stay far below 2^53, where a number is still exact. */
const count = (name: string) => bigint(name, { mode: "number" });

export const users = pgTable("users", {
  id: uuid("id").primaryKey(),
  email: text("email").notNull().unique(),
  passwordHash: text("password_hash").notNull(),
  createdAt: instant("created_at").notNull(),
  /** [W9] The account's change counter. */
  seq: count("seq").notNull().default(0),
  /** A cursor below this seq may have missed a removed tombstone. */
  oldestCursorSeq: count("oldest_cursor_seq").notNull().default(0),
  /** Tokens of an older generation no longer count. */
  tokenGeneration: integer("token_generation").notNull().default(0),
  /** Kept exact in the transaction of every write: what quota and history limit look at. */
  storedBytes: count("stored_bytes").notNull().default(0),
  historyItems: integer("history_items").notNull().default(0),
});

const ofUser = () =>
  uuid("user_id")
    .notNull()
    .references(() => users.id, { onDelete: "cascade" });

export const devices = pgTable(
  "devices",
  {
    userId: ofUser(),
    id: uuid("id").notNull(),
    name: text("name").notNull(),
    deviceType: text("device_type").notNull(),
    lastSeen: instant("last_seen").notNull(),
    createdAt: instant("created_at").notNull(),
    /** A removed device is marked, not erased: `updated_by` and `device_id` outlive it. */
    revokedAt: instant("revoked_at"),
    tokenExpiresAt: instant("token_expires_at").notNull(),
    /** [R2] Delivery is confirmed up to this seq. */
    confirmedSeq: count("confirmed_seq").notNull(),
    /** Milliseconds: an instance holds a socket of it, and will say so again before this time. */
    connectedUntil: count("connected_until").notNull().default(0),
  },
  (table) => [primaryKey({ columns: [table.userId, table.id] })],
);

export const syncedSlots = pgTable(
  "synced_slots",
  {
    userId: ofUser(),
    slotNumber: integer("slot_number").notNull(),
    /** Empty when the slot was cleared. */
    encryptedBlob: blob("encrypted_blob").notNull(),
    updatedAt: instant("updated_at").notNull(),
    updatedBy: uuid("updated_by"),
    seq: count("seq").notNull(),
    cleared: boolean("cleared").notNull().default(false),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.slotNumber] }),
    foreignKey({
      name: "synced_slots_device_fk",
      columns: [table.userId, table.updatedBy],
      foreignColumns: [devices.userId, devices.id],
    }),
    check("synced_slots_number", sql`${table.slotNumber} BETWEEN 1 AND 10`),
  ],
);

/** Live history only; what was deleted stands in history_tombstones. */
export const syncedHistory = pgTable(
  "synced_history",
  {
    userId: ofUser(),
    id: uuid("id").notNull(),
    encryptedBlob: blob("encrypted_blob").notNull(),
    contentHash: text("content_hash").notNull(),
    deviceId: uuid("device_id"),
    createdAt: instant("created_at").notNull(),
    expiresAt: instant("expires_at"),
    seq: count("seq").notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.id] }),
    foreignKey({
      name: "synced_history_device_fk",
      columns: [table.userId, table.deviceId],
      foreignColumns: [devices.userId, devices.id],
    }),
    uniqueIndex("idx_synced_history_hash").on(table.userId, table.contentHash),
    index("idx_synced_history_user").on(
      table.userId,
      table.createdAt.desc().nullsFirst(),
      table.id.desc().nullsFirst(),
    ),
    index("idx_synced_history_seq").on(table.userId, table.seq),
    index("idx_synced_history_expires")
      .on(table.userId, table.expiresAt)
      .where(sql`${table.expiresAt} IS NOT NULL`),
  ],
);

/** [W8] Ids of deleted history items, so that deletes travel and nothing comes back. */
export const historyTombstones = pgTable(
  "history_tombstones",
  {
    userId: ofUser(),
    id: uuid("id").notNull(),
    seq: count("seq").notNull(),
    deletedAt: instant("deleted_at").notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.id] }),
    index("idx_history_tombstones_seq").on(table.userId, table.seq),
  ],
);

/** One live link code an account; the key is sealed and the code only a keyed digest. */
export const linkCodes = pgTable("link_codes", {
  userId: uuid("user_id")
    .primaryKey()
    .references(() => users.id, { onDelete: "cascade" }),
  codeDigest: text("code_digest").notNull(),
  sealedKey: text("sealed_key").notNull(),
  expiresAt: instant("expires_at").notNull(),
  wrongTries: integer("wrong_tries").notNull().default(0),
});

/** Invites not used yet. */
export const invites = pgTable("invites", {
  digest: text("digest").primaryKey(),
  createdAt: instant("created_at").notNull(),
  expiresAt: instant("expires_at").notNull(),
});

/** Facts about the database itself: its epoch. */
export const serverMeta = pgTable("server_meta", {
  key: text("key").primaryKey(),
  value: text("value").notNull(),
});
