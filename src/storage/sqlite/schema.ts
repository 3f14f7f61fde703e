/**
 * The tables in SQLite. Ids are text, times integers (milliseconds since 1970), blobs bytes. Every primary key and
 * index starts with the account, so that no account can reach another's rows and one account's data can move alone;
 * the exceptions are the address an account is found by, and invites, which belong to none yet.
 */
import { sql } from "drizzle-orm";
import {
  blob,
  check,
  foreignKey,
  index,
  integer,
  primaryKey,
  sqliteTable,
  text,
  uniqueIndex,
} from "drizzle-orm/sqlite-core";

export const users = sqliteTable("users", {
  id: text("id").primaryKey(),
  email: text("email").notNull().unique(),
  passwordHash: text("password_hash").notNull(),
  createdAt: integer("created_at").notNull(),
  /** [W9] The account's change counter. */
  seq: integer("seq").notNull().default(0),
  /** A cursor below this seq may have missed a removed tombstone. */
  oldestCursorSeq: integer("oldest_cursor_seq").notNull().default(0),
  /** Tokens of an older generation no longer count. */
  tokenGeneration: integer("token_generation").notNull().default(0),
  /** Kept exact in the transaction of every write: what quota and history limit look at. */
  storedBytes: integer("stored_bytes").notNull().default(0),
  historyItems: integer("history_items").notNull().default(0),
});

const ofUser = () =>
  text("user_id")
    .notNull()
    .references(() => users.id, { onDelete: "cascade" });

export const devices = sqliteTable(
  "devices",
  {
    userId: ofUser(),
    id: text("id").notNull(),
    name: text("name").notNull(),
    deviceType: text("device_type").notNull(),
    lastSeen: integer("last_seen").notNull(),
    createdAt: integer("created_at").notNull(),
    /** A removed device is marked, not erased: `updated_by` and `device_id` outlive it. */
    revokedAt: integer("revoked_at"),
    tokenExpiresAt: integer("token_expires_at").notNull(),
    /** [R2] Delivery is confirmed up to this seq. */
    confirmedSeq: integer("confirmed_seq").notNull(),
    /** An instance holds a socket of it, and will say so again before this time. */
    connectedUntil: integer("connected_until").notNull().default(0),
  },
  (table) => [primaryKey({ columns: [table.userId, table.id] })],
);

export const syncedSlots = sqliteTable(
  "synced_slots",
  {
    userId: ofUser(),
    slotNumber: integer("slot_number").notNull(),
    /** Empty when the slot was cleared. */
    encryptedBlob: blob("encrypted_blob", { mode: "buffer" }).notNull(),
    updatedAt: integer("updated_at").notNull(),
    updatedBy: text("updated_by"),
    seq: integer("seq").notNull(),
    cleared: integer("cleared", { mode: "boolean" }).notNull().default(false),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.slotNumber] }),
    foreignKey({ columns: [table.userId, table.updatedBy], foreignColumns: [devices.userId, devices.id] }),
    check("synced_slots_number", sql`${table.slotNumber} BETWEEN 1 AND 10`),
    // seq lies behind the blob: without this, looking for what changed reads through all of each blob.
    index("idx_synced_slots_seq").on(table.userId, table.seq),
  ],
);

export const syncedHistory = sqliteTable(
  "synced_history",
  {
    userId: ofUser(),
    id: text("id").notNull(),
    encryptedBlob: blob("encrypted_blob", { mode: "buffer" }).notNull(),
    contentHash: text("content_hash").notNull(),
    deviceId: text("device_id"),
    createdAt: integer("created_at").notNull(),
    expiresAt: integer("expires_at"),
    seq: integer("seq").notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.id] }),
    foreignKey({ columns: [table.userId, table.deviceId], foreignColumns: [devices.userId, devices.id] }),
    uniqueIndex("idx_synced_history_hash").on(table.userId, table.contentHash),
    index("idx_synced_history_user").on(table.userId, sql`${table.createdAt} DESC`, sql`${table.id} DESC`),
    index("idx_synced_history_seq").on(table.userId, table.seq),
    index("idx_synced_history_expires")
      .on(table.userId, table.expiresAt)
      .where(sql`${table.expiresAt} IS NOT NULL`),
  ],
);

/** [W8] Ids of deleted history items, so that deletes travel and nothing comes back. */
export const historyTombstones = sqliteTable(
  "history_tombstones",
  {
    userId: ofUser(),
    id: text("id").notNull(),
    seq: integer("seq").notNull(),
    deletedAt: integer("deleted_at").notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.id] }),
    index("idx_history_tombstones_seq").on(table.userId, table.seq),
  ],
);

/** One live link code an account; the key is sealed and the code only a keyed digest. */
export const linkCodes = sqliteTable("link_codes", {
  userId: text("user_id")
    .primaryKey()
    .references(() => users.id, { onDelete: "cascade" }),
  codeDigest: text("code_digest").notNull(),
  sealedKey: text("sealed_key").notNull(),
  expiresAt: integer("expires_at").notNull(),
  wrongTries: integer("wrong_tries").notNull().default(0),
});

/** Invites not used yet. */
export const invites = sqliteTable("invites", {
  digest: text("digest").primaryKey(),
  createdAt: integer("created_at").notNull(),
  expiresAt: integer("expires_at").notNull(),
});

/** Facts about the database itself: its epoch. */
export const serverMeta = sqliteTable("server_meta", {
  key: text("key").primaryKey(),
  value: text("value").notNull(),
});
