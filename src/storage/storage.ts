/**
 * The storage port: what the server asks of a database, as whole domain operations. Each is atomic and durable when
 * its promise resolves. There is no transaction callback, on purpose: see the two adapters for what each dialect does.
 *
 * Conventions: ids are lower-case UUIDs; times are integers, milliseconds since 1970 (UTC); a blob is the canonical
 * base64 text it arrived in (adapters keep bytes). When the database can't be reached, an operation rejects with
 * AppError `unavailable`; when its disk is full, with `disk_full`. Any other rejection is a fault of ours.
 */

/** Who writes. Checked against the database in the same transaction as the write ([R6]: a revoked token writes nothing). */
export interface Author {
  userId: string;
  /** null: an account token, which has no device. */
  deviceId: string | null;
  /** The account's token generation when the token was issued; a password change raises the account's. */
  tokenGeneration: number;
}

/** A slot's new content, or (blob null) its clearing. */
export interface SlotWrite {
  kind: "slot";
  author: Author;
  /** 1 to 10. */
  slotNumber: number;
  blob: string | null;
  /** Milliseconds, already bounded by [W3]; null: [W4], it takes max(now, stored + 1) and always wins. */
  timestamp: number | null;
  /** Equal to the stored seq: the write wins with max(timestamp, stored + 1). Otherwise [W2] decides. */
  baseSeq: number | null;
}

export interface HistoryWrite {
  kind: "history_push";
  author: Author;
  id: string;
  blob: string;
  contentHash: string;
  createdAt: number;
  expiresAt: number | null;
}

export interface HistoryDelete {
  kind: "history_delete";
  author: Author;
  id: string;
}

export type Write = SlotWrite | HistoryWrite | HistoryDelete;

export interface SlotChange {
  kind: "slot";
  seq: number;
  slotNumber: number;
  /** null: the slot was cleared. */
  blob: string | null;
  updatedBy: string | null;
  timestamp: number;
}

export interface HistoryChange {
  kind: "history";
  seq: number;
  id: string;
  blob: string;
  contentHash: string;
  deviceId: string | null;
  createdAt: number;
  expiresAt: number | null;
}

export interface HistoryDeletion {
  kind: "history_deletion";
  seq: number;
  id: string;
}

/** What became of an account's data, as every device has to learn it. */
export type Change = SlotChange | HistoryChange | HistoryDeletion;

/** What stands in a slot, without its content: whoever sent a few bytes must not make us carry a megabyte. */
export type SlotHead = Omit<SlotChange, "blob">;
/** The same of a history item. */
export type HistoryHead = Pick<HistoryChange, "kind" | "seq" | "id" | "createdAt">;

/**
 * What became of one write.
 * - applied: `change` is what to relay.
 * - stale: it lost; `winner` is what stands ([W6]), or null for a push of a deleted id ([W8]). `seq` is the seq of what stands.
 * - duplicate: it changes nothing ([W2], [W7]); `seq` is the stored one's.
 * - not_found: a delete of an id that was never there.
 * - revoked: the author's token no longer counts. quota_exceeded: the account is full.
 */
export type WriteOutcome =
  | { result: "applied"; seq: number; change: Change }
  | { result: "stale"; seq: number; winner: SlotHead | null }
  | { result: "duplicate"; seq: number; stored: SlotHead | HistoryHead | null }
  | { result: "not_found" }
  | { result: "revoked" }
  | { result: "quota_exceeded" };

/** What one batch did to one account. */
export interface AccountProgress {
  userId: string;
  /** The account's counter before the batch and after it; numbers between may stay unused ([W9]). */
  previousSeq: number;
  seq: number;
  /** Applied changes in seq order; also those no write asked for (history evicted to stay within the limit). */
  changes: Change[];
}

export interface AppliedBatch {
  /** One an input write, in input order. */
  outcomes: WriteOutcome[];
  /** One an account whose counter moved. */
  accounts: AccountProgress[];
}

/** Which tombstones stay. */
export interface RetentionBounds {
  /** Older ones leave, */
  tombstonesBefore: number;
  /** and the oldest beyond so many. */
  tombstones: number;
  limit: number;
}

export interface Retained extends AccountProgress {
  /** A next call may find more. */
  hasMore: boolean;
}

export interface WriteLimits {
  /** Live history items an account keeps; the oldest leave ([W8] holds for them: they leave a tombstone). */
  historyItems: number;
  /** Bytes of blobs an account may hold. */
  accountBytes: number;
}

export interface User {
  id: string;
  email: string;
  passwordHash: string;
  createdAt: number;
  tokenGeneration: number;
  seq: number;
}

export interface Device {
  id: string;
  name: string;
  deviceType: string;
  lastSeen: number;
  createdAt: number;
  /** Delivery is confirmed up to this seq ([R2]). */
  confirmedSeq: number;
  /** An instance holds a socket of it, and will say so again before this time. */
  connectedUntil: number;
}

export interface NewDevice {
  userId: string;
  id: string;
  name: string;
  deviceType: string;
  createdAt: number;
  /** When the device's newest token ends; past it the device has left the list. */
  tokenExpiresAt: number;
}

/** What decides whether a token counts. */
export interface TokenState {
  tokenGeneration: number;
  /** null: no such live device (or no device was asked for). */
  device: { confirmedSeq: number } | null;
}

/** What a device's presence leaves in the database; values only ever grow, so instances never fight over them. */
export interface DevicePresence {
  userId: string;
  deviceId: string;
  lastSeen: number;
  confirmedSeq: number;
  /** Until when it counts as connected, for other instances to see; 0: nothing new. */
  connectedUntil: number;
}

export interface StoredSlot {
  slotNumber: number;
  blob: string;
  updatedAt: number;
  updatedBy: string | null;
  seq: number;
}

export interface StoredHistoryItem {
  id: string;
  blob: string;
  contentHash: string;
  deviceId: string | null;
  createdAt: number;
  expiresAt: number | null;
  seq: number;
}

/** A place in the history, newest first by (createdAt, id). */
export interface HistoryPosition {
  createdAt: number;
  id: string;
}

export interface HistoryPage {
  /** Newest first. */
  items: StoredHistoryItem[];
  /** Older ones are left. */
  hasMore: boolean;
}

export interface ChangePage {
  /** In seq order. */
  changes: Change[];
  /** Every change up to this seq is in this page or before it: the last change's seq, or the account's counter when nothing is left. */
  throughSeq: number;
  hasMore: boolean;
}

export interface AccountSummary {
  seq: number;
  /** A cursor below this seq may have missed a removed tombstone. */
  oldestCursorSeq: number;
  storedBytes: number;
  historyItems: number;
}

export interface LinkCode {
  userId: string;
  /** Keyed digest of the code; the code itself is never stored. */
  codeDigest: string;
  sealedKey: string;
  expiresAt: number;
}

export interface Storage {
  readonly dialect: "sqlite" | "postgres";

  /** Drawn when the database was created and when a backup was restored; part of every cursor. */
  readonly epoch: string;

  // Changes

  /**
   * Applies a batch: locks the accounts' counters in id order, gives each write a seq in input order, puts it where it
   * wins ([W2], [W4], [W7], [W8], [W9]). Writes of one batch to the same slot or item have the effect that they would
   * have one after the other, each with its own outcome: how writes were grouped never shows.
   */
  applyWrites(writes: readonly Write[], limits: WriteLimits, now: number): Promise<AppliedBatch>;

  /** Changes with a seq above `afterSeq`, oldest first, at most `limit` of them and (but for the first) `maxBytes` of blobs. */
  changesAfter(userId: string, afterSeq: number, page: { limit: number; maxBytes: number }): Promise<ChangePage>;

  /** The counters of these accounts; an account that is gone is left out. */
  accountSeqs(userIds: readonly string[]): Promise<Map<string, number>>;

  summary(userId: string): Promise<AccountSummary | null>;
  /** What stands in a slot, as a change; null: it was never written. */
  slot(userId: string, slotNumber: number): Promise<SlotChange | null>;
  /** Slots with content, by number; null: their blobs are more than `maxBytes`, so they are to be read one by one. */
  slots(userId: string, maxBytes?: number): Promise<StoredSlot[] | null>;
  /** Live history, newest first, at most `limit` items of it and (but for the first) `maxBytes` of blobs. */
  history(
    userId: string,
    page: { limit: number; offset: number; before: HistoryPosition | null; maxBytes: number },
  ): Promise<HistoryPage>;
  /** Where the item stands that comes `offset` items after the next older one than `before`; null: there is none. */
  historyPosition(userId: string, place: { before: HistoryPosition; offset: number }): Promise<HistoryPosition | null>;

  // Accounts

  /** false: the address is taken. */
  createUser(user: { id: string; email: string; passwordHash: string; createdAt: number }): Promise<boolean>;
  userByEmail(email: string): Promise<User | null>;
  userById(userId: string): Promise<User | null>;
  /** Pages over all accounts by id; `after` null starts. */
  users(after: string | null, limit: number): Promise<User[]>;
  /**
   * Sets a new hash, raises the token generation (which it returns) and revokes every device but `keepDeviceId`: their
   * tokens are of the old generation anyway. null: no such account.
   */
  changePassword(
    userId: string,
    passwordHash: string,
    keepDeviceId: string | null,
    now: number,
  ): Promise<number | null>;
  /** Erases everything of the account. */
  deleteUser(userId: string): Promise<boolean>;

  // Devices

  /** Starts at the account's current seq ([R2]). At `maxDevices` live devices the longest unseen ones are revoked and returned. null: no such account. */
  registerDevice(device: NewDevice, maxDevices: number): Promise<{ revoked: string[] } | null>;
  /** Devices that are not revoked and whose last token has not expired, oldest first. */
  devices(userId: string, now: number): Promise<Device[]>;
  /** Marks it ([R6]); false: no such live device. */
  revokeDevice(userId: string, deviceId: string, now: number): Promise<boolean>;
  extendDevice(userId: string, deviceId: string, tokenExpiresAt: number): Promise<boolean>;
  /** null: no such account. */
  tokenState(userId: string, deviceId: string | null): Promise<TokenState | null>;
  /** Which of these authors' tokens no longer count ([R6]): account gone, generation passed, device revoked. */
  deadAuthors(authors: readonly Author[]): Promise<Author[]>;
  recordPresence(presences: readonly DevicePresence[]): Promise<void>;

  // Link codes

  /** One live code an account: replaces an older one. false: no such account. */
  putLinkCode(code: LinkCode): Promise<boolean>;
  /**
   * Takes the account's code, once: returns its sealed key and erases it. A wrong digest counts; at `maxWrongTries`
   * the code is erased. null: wrong, gone, past its time, or never there.
   */
  takeLinkCode(userId: string, codeDigest: string, maxWrongTries: number, now: number): Promise<string | null>;

  // Invites

  createInvite(invite: { digest: string; createdAt: number; expiresAt: number }): Promise<void>;
  /** As createUser, and uses up the invite in the same transaction. */
  createInvitedUser(
    user: { id: string; email: string; passwordHash: string; createdAt: number },
    inviteDigest: string,
  ): Promise<"created" | "taken" | "invite_invalid">;

  // Upkeep

  /**
   * Removes what is past its time for the account, at most `limit` rows of each: expired history (as deletions to
   * relay), and tombstones, which moves the oldest cursor that is served. null: no such account.
   */
  retain(userId: string, now: number, bounds: RetentionBounds): Promise<Retained | null>;
  /**
   * A number that moves when another process changed the database and had no bus to tell by: on SQLite, a command
   * beside the server. On PostgreSQL it stands still, since there everybody tells.
   */
  foreignChanges(): Promise<number>;
  /** Resolves when the database answers. */
  ping(): Promise<void>;
  close(): Promise<void>;
}
