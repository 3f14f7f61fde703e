/** Accounts and writes for the tests of storage. */
import type { PostgresOptions } from "../src/storage/postgres/storage.ts";
import type {
  AppliedBatch,
  Author,
  Change,
  HistoryDelete,
  HistoryWrite,
  SlotWrite,
  Storage,
  StoredHistoryItem,
  Write,
  WriteLimits,
  WriteOutcome,
} from "../src/storage/storage.ts";

/** An odd millisecond, so that a time cut to seconds shows. */
export const NOW = 1_700_000_000_123;
export const LIMITS: WriteLimits = { historyItems: 1_000, accountBytes: 1_000_000_000 };
const FAR_OFF = NOW + 1_000_000_000;

export interface Account {
  userId: string;
  /** In the order of their ids. */
  devices: [string, string];
  /** The first device's, with the token it was given. */
  author: Author;
  second: Author;
  /** Of a token without a device. */
  accountAuthor: Author;
}

export const uuid = (): string => crypto.randomUUID();

/** An account with two devices. */
export async function createAccount(storage: Storage, userId = uuid()): Promise<Account> {
  const devices: [string, string] = [uuid(), uuid()];
  devices.sort();
  const created = await storage.createUser(newUser({ id: userId }));
  if (!created) throw new Error("the address is taken");
  for (const id of devices) await storage.registerDevice(newDevice(userId, { id }), 50);
  const author = (deviceId: string | null): Author => ({ userId, deviceId, tokenGeneration: 0 });
  return { userId, devices, author: author(devices[0]), second: author(devices[1]), accountAuthor: author(null) };
}

export function newUser(fields: { id?: string; email?: string } = {}) {
  const id = fields.id ?? uuid();
  return { id, email: fields.email ?? `${uuid()}@example.org`, passwordHash: "hash", createdAt: NOW };
}

export function newDevice(userId: string, fields: { id?: string; createdAt?: number; tokenExpiresAt?: number } = {}) {
  return {
    userId,
    id: uuid(),
    name: "laptop",
    deviceType: "macos",
    createdAt: NOW,
    tokenExpiresAt: FAR_OFF,
    ...fields,
  };
}

/** Canonical base64 of a text, which stands for a blob. */
export const blobOf = (content: string): string => Buffer.from(content).toString("base64");

/** A blob of so many bytes. */
export const blobOfBytes = (bytes: number, fill = "x"): string => blobOf(fill.repeat(bytes));

export function slot(author: Author, fields: Partial<Omit<SlotWrite, "kind" | "author">> = {}): SlotWrite {
  return { kind: "slot", author, slotNumber: 1, blob: blobOf("content"), timestamp: NOW, baseSeq: null, ...fields };
}

export function push(author: Author, fields: Partial<Omit<HistoryWrite, "kind" | "author">> = {}): HistoryWrite {
  const id = fields.id ?? uuid();
  return {
    kind: "history_push",
    author,
    id,
    blob: blobOf("clip"),
    contentHash: `hash:${id}`,
    createdAt: NOW,
    expiresAt: null,
    ...fields,
  };
}

export const deletion = (author: Author, id: string): HistoryDelete => ({ kind: "history_delete", author, id });

/** Applies one batch at NOW. */
export function apply(storage: Storage, writes: readonly Write[], limits: Partial<WriteLimits> = {}) {
  return storage.applyWrites(writes, { ...LIMITS, ...limits }, NOW);
}

/** Applies one write. */
export async function applyOne(
  storage: Storage,
  write: Write,
  limits: Partial<WriteLimits> = {},
): Promise<WriteOutcome> {
  const [outcome] = (await apply(storage, [write], limits)).outcomes;
  if (outcome === undefined) throw new Error("a write had no outcome");
  return outcome;
}

/** Every change of the account, read page by page. */
export async function allChanges(storage: Storage, userId: string, afterSeq = 0): Promise<Change[]> {
  const changes: Change[] = [];
  for (let after = afterSeq; ;) {
    const page = await storage.changesAfter(userId, after, { limit: 100, maxBytes: 1_000_000 });
    changes.push(...page.changes);
    if (!page.hasMore) return changes;
    after = page.throughSeq;
  }
}

/** The account's history, which fits a page. */
export async function liveHistory(storage: Storage, userId: string): Promise<StoredHistoryItem[]> {
  const { items, hasMore } = await storage.history(userId, {
    limit: 100,
    offset: 0,
    before: null,
    maxBytes: 1_000_000,
  });
  if (hasMore) throw new Error("the history does not fit a page");
  return items;
}

export const results = ({ outcomes }: AppliedBatch): string[] => outcomes.map(({ result }) => result);

/** The seq of an outcome that has one. */
export function seqOf(outcome: WriteOutcome | undefined): number {
  if (outcome === undefined || !("seq" in outcome)) throw new Error(`no seq: ${outcome?.result ?? "no outcome"}`);
  return outcome.seq;
}

export function postgresOptions(url: string, fields: Partial<PostgresOptions> = {}): PostgresOptions {
  return {
    url,
    directUrl: url,
    pooled: false,
    poolSize: 8,
    connectTimeoutSeconds: 5,
    statementTimeoutMs: 10_000,
    queryTimeoutMs: 12_000,
    ...fields,
  };
}
