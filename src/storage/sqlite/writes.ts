/**
 * Applies a batch of writes in one immediate transaction: one fsync however many writes came together. SQLite has one
 * writer at a time, so what is read here is what stands when the transaction commits.
 */
import type { Database } from "bun:sqlite";
import { and, asc, eq, isNull, sql } from "drizzle-orm";
import type { BunSQLiteDatabase } from "drizzle-orm/bun-sqlite";
import { compareSlotVersions } from "../merge.ts";
import type {
  AccountProgress,
  AppliedBatch,
  Author,
  HistoryDelete,
  HistoryWrite,
  SlotChange,
  SlotWrite,
  Write,
  WriteLimits,
  WriteOutcome,
} from "../storage.ts";
import { devices, historyTombstones, syncedHistory, syncedSlots, users } from "./schema.ts";

const EMPTY = Buffer.alloc(0);

/** An account as the batch goes on; written back once at the end. */
interface Account extends AccountProgress {
  tokenGeneration: number;
  storedBytes: number;
  historyItems: number;
  /** Devices looked up in this batch: live or not. */
  liveDevices: Map<string, boolean>;
}

export type ApplyWrites = (writes: readonly Write[], limits: WriteLimits, now: number) => AppliedBatch;

export function prepareWrites(client: Database, db: BunSQLiteDatabase): ApplyWrites {
  const statements = prepareStatements(db);

  const apply = client.transaction((writes: readonly Write[], limits: WriteLimits, now: number): AppliedBatch => {
    const accounts = new Map<string, Account | null>();
    const outcomes = writes.map((write): WriteOutcome => {
      const account = admit(write.author, accounts);
      if (account === null) return { result: "revoked" };
      switch (write.kind) {
        case "slot":
          return putSlot(account, write, limits, now);
        case "history_push":
          return pushHistory(account, write, limits);
        case "history_delete":
          return deleteHistory(account, write, now);
      }
    });
    const moved: AccountProgress[] = [];
    for (const account of accounts.values()) {
      if (account === null) continue;
      evictHistory(account, limits, now);
      if (account.seq === account.previousSeq) continue;
      statements.saveAccount.run({ ...account });
      moved.push({
        userId: account.userId,
        previousSeq: account.previousSeq,
        seq: account.seq,
        changes: account.changes,
      });
    }
    return { outcomes, accounts: moved };
  });
  return (writes, limits, now) => apply.immediate(writes, limits, now);

  /** [R6] The author's account, when the token still counts. */
  function admit(author: Author, accounts: Map<string, Account | null>): Account | null {
    let account = accounts.get(author.userId);
    if (account === undefined) {
      const row = statements.account.get({ userId: author.userId });
      account =
        row === undefined
          ? null
          : {
              ...row,
              userId: author.userId,
              previousSeq: row.seq,
              changes: [],
              liveDevices: new Map<string, boolean>(),
            };
      accounts.set(author.userId, account);
    }
    if (account === null || author.tokenGeneration < account.tokenGeneration) return null;
    if (author.deviceId === null) return account;
    let live = account.liveDevices.get(author.deviceId);
    if (live === undefined) {
      live = statements.liveDevice.get({ userId: author.userId, deviceId: author.deviceId }) !== undefined;
      account.liveDevices.set(author.deviceId, live);
    }
    return live ? account : null;
  }

  function putSlot(account: Account, write: SlotWrite, limits: WriteLimits, now: number): WriteOutcome {
    const { userId } = account;
    const { slotNumber, author, blob } = write;
    const bytes = blob === null ? EMPTY : Buffer.from(blob, "base64");
    const stored = statements.slot.get({ userId, slotNumber });
    let timestamp = write.timestamp ?? now;
    if (stored !== undefined) {
      if (write.timestamp === null || write.baseSeq === stored.seq) {
        timestamp = Math.max(timestamp, stored.timestamp + 1);
      } else {
        const order = compareSlotVersions(
          { timestamp: write.timestamp, deviceId: author.deviceId, content: () => bytes },
          { ...stored, content: () => statements.slotContent.get({ userId, slotNumber })?.bytes ?? EMPTY },
        );
        if (order === 0) return { result: "duplicate", seq: stored.seq, stored: storedSlot(userId, slotNumber) };
        if (order < 0) return { result: "stale", seq: stored.seq, winner: storedSlot(userId, slotNumber) };
      }
    }
    if (!grow(account, bytes.length - (stored?.bytes ?? 0), limits)) return { result: "quota_exceeded" };
    const seq = ++account.seq;
    statements.putSlot.run({
      userId,
      slotNumber,
      bytes,
      timestamp,
      deviceId: author.deviceId,
      seq,
      cleared: blob === null,
    });
    const change: SlotChange = { kind: "slot", seq, slotNumber, blob, updatedBy: author.deviceId, timestamp };
    account.changes.push(change);
    return { result: "applied", seq, change };
  }

  function storedSlot(userId: string, slotNumber: number): SlotChange {
    const row = statements.slotContent.get({ userId, slotNumber });
    if (row === undefined) throw new Error("a slot left the table within a transaction");
    return {
      kind: "slot",
      seq: row.seq,
      slotNumber,
      blob: row.cleared ? null : row.bytes.toString("base64"),
      updatedBy: row.deviceId,
      timestamp: row.timestamp,
    };
  }

  function pushHistory(account: Account, write: HistoryWrite, limits: WriteLimits): WriteOutcome {
    const { userId } = account;
    const { id, contentHash, author, createdAt, expiresAt, blob } = write;
    const tombstone = statements.tombstone.get({ userId, id });
    if (tombstone !== undefined) return { result: "stale", seq: tombstone.seq, winner: null };
    const stored = statements.historyById.get({ userId, id }) ?? statements.historyByHash.get({ userId, contentHash });
    if (stored !== undefined) {
      const { bytes, ...item } = stored;
      return {
        result: "duplicate",
        seq: stored.seq,
        stored: { kind: "history", ...item, blob: bytes.toString("base64") },
      };
    }
    const bytes = Buffer.from(blob, "base64");
    if (!grow(account, bytes.length, limits)) return { result: "quota_exceeded" };
    const seq = ++account.seq;
    account.historyItems += 1;
    const { deviceId } = author;
    statements.addHistory.run({ userId, id, bytes, contentHash, deviceId, createdAt, expiresAt, seq });
    const change = { kind: "history", seq, id, blob, contentHash, deviceId, createdAt, expiresAt } as const;
    account.changes.push(change);
    return { result: "applied", seq, change };
  }

  function deleteHistory(account: Account, write: HistoryDelete, now: number): WriteOutcome {
    const { userId } = account;
    const { id } = write;
    const stored = statements.historySize.get({ userId, id });
    if (stored === undefined) {
      const tombstone = statements.tombstone.get({ userId, id });
      return tombstone === undefined
        ? { result: "not_found" }
        : { result: "duplicate", seq: tombstone.seq, stored: null };
    }
    return { result: "applied", seq: account.seq + 1, change: bury(account, id, stored.bytes, now) };
  }

  /** The oldest leave until the account is within its limit. */
  function evictHistory(account: Account, limits: WriteLimits, now: number): void {
    const excess = account.historyItems - limits.historyItems;
    if (excess <= 0) return;
    for (const { id, bytes } of statements.oldestHistory.all({ userId: account.userId, limit: excess })) {
      bury(account, id, bytes, now);
    }
  }

  function bury(account: Account, id: string, bytes: number, now: number) {
    const { userId } = account;
    const seq = ++account.seq;
    account.historyItems -= 1;
    account.storedBytes -= bytes;
    statements.removeHistory.run({ userId, id });
    statements.addTombstone.run({ userId, id, seq, now });
    const change = { kind: "history_deletion", seq, id } as const;
    account.changes.push(change);
    return change;
  }
}

/** Books the growth, unless the account is full; what does not grow always fits. */
function grow(account: Account, bytes: number, limits: WriteLimits): boolean {
  if (bytes > 0 && account.storedBytes + bytes > limits.accountBytes) return false;
  account.storedBytes += bytes;
  return true;
}

function prepareStatements(db: BunSQLiteDatabase) {
  const given = sql.placeholder;
  const ofSlot = and(eq(syncedSlots.userId, given("userId")), eq(syncedSlots.slotNumber, given("slotNumber")));
  const historyId = and(eq(syncedHistory.userId, given("userId")), eq(syncedHistory.id, given("id")));
  const historyItem = {
    seq: syncedHistory.seq,
    id: syncedHistory.id,
    bytes: syncedHistory.encryptedBlob,
    contentHash: syncedHistory.contentHash,
    deviceId: syncedHistory.deviceId,
    createdAt: syncedHistory.createdAt,
    expiresAt: syncedHistory.expiresAt,
  };
  const historyBytes = sql<number>`length(${syncedHistory.encryptedBlob})`;
  return {
    account: db
      .select({
        seq: users.seq,
        tokenGeneration: users.tokenGeneration,
        storedBytes: users.storedBytes,
        historyItems: users.historyItems,
      })
      .from(users)
      .where(eq(users.id, given("userId")))
      .prepare(),
    saveAccount: db
      .update(users)
      .set({
        seq: sql`${given("seq")}`,
        storedBytes: sql`${given("storedBytes")}`,
        historyItems: sql`${given("historyItems")}`,
      })
      .where(eq(users.id, given("userId")))
      .prepare(),
    liveDevice: db
      .select({ id: devices.id })
      .from(devices)
      .where(and(eq(devices.userId, given("userId")), eq(devices.id, given("deviceId")), isNull(devices.revokedAt)))
      .prepare(),
    slot: db
      .select({
        seq: syncedSlots.seq,
        timestamp: syncedSlots.updatedAt,
        deviceId: syncedSlots.updatedBy,
        bytes: sql<number>`length(${syncedSlots.encryptedBlob})`,
      })
      .from(syncedSlots)
      .where(ofSlot)
      .prepare(),
    slotContent: db
      .select({
        seq: syncedSlots.seq,
        timestamp: syncedSlots.updatedAt,
        deviceId: syncedSlots.updatedBy,
        bytes: syncedSlots.encryptedBlob,
        cleared: syncedSlots.cleared,
      })
      .from(syncedSlots)
      .where(ofSlot)
      .prepare(),
    putSlot: db
      .insert(syncedSlots)
      .values({
        userId: given("userId"),
        slotNumber: given("slotNumber"),
        encryptedBlob: given("bytes"),
        updatedAt: given("timestamp"),
        updatedBy: given("deviceId"),
        seq: given("seq"),
        cleared: given("cleared"),
      })
      .onConflictDoUpdate({
        target: [syncedSlots.userId, syncedSlots.slotNumber],
        set: {
          encryptedBlob: sql`excluded.encrypted_blob`,
          updatedAt: sql`excluded.updated_at`,
          updatedBy: sql`excluded.updated_by`,
          seq: sql`excluded.seq`,
          cleared: sql`excluded.cleared`,
        },
      })
      .prepare(),
    tombstone: db
      .select({ seq: historyTombstones.seq })
      .from(historyTombstones)
      .where(and(eq(historyTombstones.userId, given("userId")), eq(historyTombstones.id, given("id"))))
      .prepare(),
    historyById: db.select(historyItem).from(syncedHistory).where(historyId).prepare(),
    historyByHash: db
      .select(historyItem)
      .from(syncedHistory)
      .where(and(eq(syncedHistory.userId, given("userId")), eq(syncedHistory.contentHash, given("contentHash"))))
      .prepare(),
    historySize: db.select({ bytes: historyBytes }).from(syncedHistory).where(historyId).prepare(),
    oldestHistory: db
      .select({ id: syncedHistory.id, bytes: historyBytes })
      .from(syncedHistory)
      .where(eq(syncedHistory.userId, given("userId")))
      .orderBy(asc(syncedHistory.createdAt), asc(syncedHistory.id))
      .limit(given("limit"))
      .prepare(),
    addHistory: db
      .insert(syncedHistory)
      .values({
        userId: given("userId"),
        id: given("id"),
        encryptedBlob: given("bytes"),
        contentHash: given("contentHash"),
        deviceId: given("deviceId"),
        createdAt: given("createdAt"),
        expiresAt: given("expiresAt"),
        seq: given("seq"),
      })
      .prepare(),
    removeHistory: db.delete(syncedHistory).where(historyId).prepare(),
    addTombstone: db
      .insert(historyTombstones)
      .values({ userId: given("userId"), id: given("id"), seq: given("seq"), deletedAt: given("now") })
      .prepare(),
  };
}
