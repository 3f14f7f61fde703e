/**
 * Removes what is past its time, and accounts. SQLite works within one turn of the event loop, and a blob costs what its
 * pages do: so it goes in steps that are bounded in rows and bytes, each a transaction of its own.
 */
import type { Database } from "bun:sqlite";
import type { Change, RetentionBounds, Retained } from "../storage.ts";

const STEP_ROWS = 500;
const STEP_BYTES = 8 * 1024 * 1024;

/** Begins the address of a deleted account of which something is left. No address of a person has a space. */
const DELETED = "deleted ";

export interface Upkeep {
  /** As Storage.retain; of a deleted account it erases a part. */
  retain(userId: string, now: number, bounds: RetentionBounds): Retained | null;
  /**
   * The first step of a deletion: from here on the address is free and no token counts, so nobody reads or writes the
   * account any more. Should the process end before `erase` is through, retention goes on with it.
   *
   * @returns false: no such account
   */
  markDeleted(userId: string): boolean;
  /**
   * Every further step: erases a part of the account.
   *
   * @returns true: it was the last
   */
  erase(userId: string): boolean;
}

/** Prepares what removes; each call is a transaction of its own. */
export function prepareUpkeep(client: Database): Upkeep {
  const statements = prepareStatements(client);
  const retainAtOnce = client.transaction(retain);
  const eraseAtOnce = client.transaction(erase);

  return {
    retain: (...given) => retainAtOnce.immediate(...given),
    markDeleted: (userId) => statements.markDeleted.run(userId).changes === 1,
    erase: (userId) => eraseAtOnce.immediate(userId),
  };

  function retain(userId: string, now: number, { tombstonesBefore, tombstones, limit }: RetentionBounds) {
    const account = statements.account.get(userId);
    if (account === null) return null;
    const { seq: previousSeq } = account;
    if (account.email.startsWith(DELETED)) {
      return { userId, previousSeq, seq: previousSeq, changes: [], hasMore: !erase(userId) };
    }

    const beyond = statements.tombstoneBeyond.get(userId, tombstones)?.seq ?? 0;
    const leaving = statements.oldestTombstones
      .all(userId, limit)
      .filter(({ seq, deletedAt }) => deletedAt < tombstonesBefore || seq <= beyond);
    for (const { id } of leaving) statements.removeTombstone.run(userId, id);
    const oldestCursorSeq = Math.max(account.oldestCursorSeq, leaving.at(-1)?.seq ?? 0);

    const expired = statements.expired.all(userId, now, limit);
    const dead = withinStepBytes(expired);
    let { seq, storedBytes } = account;
    const changes: Change[] = [];
    for (const { id, bytes } of dead) {
      seq += 1;
      storedBytes -= bytes;
      statements.removeHistory.run(userId, id);
      statements.addTombstone.run(userId, id, seq, now);
      changes.push({ kind: "history_deletion", seq, id });
    }
    if (leaving.length > 0 || dead.length > 0) {
      statements.saveAccount.run(seq, oldestCursorSeq, storedBytes, account.historyItems - dead.length, userId);
    }
    const hasMore = leaving.length === limit || dead.length === limit || dead.length < expired.length;
    return { userId, previousSeq, seq, changes, hasMore };
  }

  function erase(userId: string): boolean {
    const items = withinStepBytes(statements.someHistory.all(userId, STEP_ROWS));
    for (const { id } of items) statements.removeHistory.run(userId, id);
    if (items.length > 0) return false;
    if (statements.removeTombstones.run(userId, STEP_ROWS).changes > 0) return false;
    // Before the devices that they name: removing a device looks for slots of it.
    statements.removeSlots.run(userId);
    statements.removeAccount.run(userId);
    return true;
  }
}

/** Erases what is left of deleted accounts, at once. */
export function eraseDeleted(client: Database): void {
  client.query("DELETE FROM users WHERE substr(email, 1, ?) = ?").run(DELETED.length, DELETED);
}

/** The first ones, one at least. */
function withinStepBytes<T extends { bytes: number }>(rows: readonly T[]): T[] {
  let total = 0;
  return rows.filter(({ bytes }, index) => (total += bytes) <= STEP_BYTES || index === 0);
}

function prepareStatements(client: Database) {
  return {
    account: client.query<AccountRow, [userId: string]>(
      `SELECT email, seq, oldest_cursor_seq AS oldestCursorSeq, stored_bytes AS storedBytes,
         history_items AS historyItems FROM users WHERE id = ?`,
    ),
    saveAccount: client.query<
      never,
      [seq: number, oldestCursorSeq: number, storedBytes: number, historyItems: number, userId: string]
    >("UPDATE users SET seq = ?, oldest_cursor_seq = ?, stored_bytes = ?, history_items = ? WHERE id = ?"),
    tombstoneBeyond: client.query<{ seq: number }, [userId: string, kept: number]>(
      "SELECT seq FROM history_tombstones WHERE user_id = ? ORDER BY seq DESC LIMIT 1 OFFSET ?",
    ),
    // Looked at and filtered after: a condition here would read all of them where none is old.
    oldestTombstones: client.query<{ id: string; seq: number; deletedAt: number }, [userId: string, limit: number]>(
      "SELECT id, seq, deleted_at AS deletedAt FROM history_tombstones WHERE user_id = ? ORDER BY seq LIMIT ?",
    ),
    removeTombstone: client.query<never, [userId: string, id: string]>(
      "DELETE FROM history_tombstones WHERE user_id = ? AND id = ?",
    ),
    addTombstone: client.query<never, [userId: string, id: string, seq: number, deletedAt: number]>(
      "INSERT INTO history_tombstones (user_id, id, seq, deleted_at) VALUES (?, ?, ?, ?)",
    ),
    expired: client.query<HistoryRow, [userId: string, now: number, limit: number]>(
      `SELECT id, length(encrypted_blob) AS bytes FROM synced_history
       WHERE user_id = ? AND expires_at <= ? ORDER BY expires_at LIMIT ?`,
    ),
    someHistory: client.query<HistoryRow, [userId: string, limit: number]>(
      "SELECT id, length(encrypted_blob) AS bytes FROM synced_history WHERE user_id = ? LIMIT ?",
    ),
    removeHistory: client.query<never, [userId: string, id: string]>(
      "DELETE FROM synced_history WHERE user_id = ? AND id = ?",
    ),
    removeTombstones: client.query<never, [userId: string, limit: number]>(
      "DELETE FROM history_tombstones WHERE rowid IN (SELECT rowid FROM history_tombstones WHERE user_id = ? LIMIT ?)",
    ),
    removeSlots: client.query<never, [userId: string]>("DELETE FROM synced_slots WHERE user_id = ?"),
    removeAccount: client.query<never, [userId: string]>("DELETE FROM users WHERE id = ?"),
    markDeleted: client.query<never, [userId: string]>(
      `UPDATE users SET email = '${DELETED}' || id, token_generation = token_generation + 1 WHERE id = ?`,
    ),
  };
}

interface AccountRow {
  email: string;
  seq: number;
  oldestCursorSeq: number;
  storedBytes: number;
  historyItems: number;
}

interface HistoryRow {
  id: string;
  bytes: number;
}
