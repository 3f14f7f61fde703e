/**
 * A batch of writes as the parameters of the SQL function apply_writes (drizzle/postgres/0003_heads.sql), and its
 * answer as the port's.
 */
import { compareSlotVersions, hashContent } from "../merge.ts";
import type {
  AccountProgress,
  AppliedBatch,
  Author,
  Change,
  HistoryDeletion,
  HistoryHead,
  SlotHead,
  SlotWrite,
  Write,
  WriteLimits,
  WriteOutcome,
} from "../storage.ts";
import { arrayLiteral, recordLiteral } from "./literals.ts";
import type { Sql } from "./pool.ts";

/** A row of apply_writes: what became of a write, */
type Answer =
  | { place: number; verdict: "applied"; seq: number; at: number }
  | { place: number; verdict: "stale"; seq: number; stored: SlotHead | null }
  | { place: number; verdict: "duplicate"; seq: number; stored: SlotHead | HistoryHead | null }
  | { place: number; verdict: "not_found" | "revoked" | "quota_exceeded" };

/** or something that happened beside. */
type Row = Answer | { place: null; verdict: "evicted"; stored: Eviction } | { place: null; verdict: "tight" };

type Eviction = HistoryDeletion & { userId: string };

/** A write that goes to the database. */
interface Sent {
  place: number;
  write: Write;
  round: number;
  step: number;
  passing: boolean;
}

/** A write that another of its batch beat, so that the database need not be asked. */
interface Beaten {
  place: number;
  by: Sent;
  /** It is the same write once more. */
  equal: boolean;
}

interface Plan {
  sent: Sent[];
  beaten: Beaten[];
  rounds: number;
}

/** Storage.applyWrites, in one statement. */
export async function applyWrites(
  sql: Sql,
  writes: readonly Write[],
  limits: WriteLimits,
  now: number,
): Promise<AppliedBatch> {
  if (writes.length === 0) return { outcomes: [], accounts: [] };
  const plan = planBatch(writes, { shorten: true });
  const rows = await send(sql, plan, limits, now);
  if (rows[0]?.verdict !== "tight") return readAnswer(plan, rows);
  const whole = planBatch(writes, { shorten: false });
  return readAnswer(whole, await send(sql, whole, limits, now));
}

/** What is to be known of an account while its writes are arranged: the round it is in, and what that holds. */
interface Account {
  round: number;
  steps: number;
  keys: Set<string>;
  deletes: boolean;
  /** By slot: the greatest write so far, which the next may overtake. */
  greatest: Map<number, Rival>;
}

interface Rival {
  sent: Sent;
  write: TimedSlotWrite;
}

/** A slot write about which [W2] alone decides. */
type TimedSlotWrite = SlotWrite & { timestamp: number; baseSeq: null };

/**
 * Arranges writes into rounds as apply_writes wants them: the effect is that of one write after another.
 *
 * A device that updates one slot again and again fills a batch with versions of which all but the last are overwritten
 * at once. They are compared here, by the rule of [W2], and only the greatest is stored. Where `shorten` is false each
 * has a round of its own.
 */
function planBatch(writes: readonly Write[], { shorten }: { shorten: boolean }): Plan {
  const accounts = new Map<string, Account>();
  const sent: Sent[] = [];
  const beaten: Beaten[] = [];
  let rounds = 1;

  for (const [place, write] of writes.entries()) {
    const account = accounts.get(write.author.userId) ?? newRound(1);
    accounts.set(write.author.userId, account);
    const duel = shorten && isTimed(write) ? duelWithGreatest(account, write) : undefined;
    if (duel !== undefined && duel.order <= 0) {
      beaten.push({ place, by: duel.rival, equal: duel.order === 0 });
      continue;
    }
    if (duel !== undefined) {
      duel.rival.passing = true;
    } else if (clashes(account, write)) {
      Object.assign(account, newRound(account.round + 1));
      rounds = Math.max(rounds, account.round);
    }
    account.steps += 1;
    const one: Sent = { place, write, round: account.round, step: account.steps, passing: false };
    sent.push(one);
    for (const key of keysOf(write)) account.keys.add(key);
    account.deletes ||= write.kind === "history_delete";
    if (isTimed(write)) account.greatest.set(write.slotNumber, { sent: one, write });
  }
  return { sent, beaten, rounds };
}

function newRound(round: number): Account {
  return { round, steps: 0, keys: new Set(), deletes: false, greatest: new Map() };
}

function clashes(account: Account, write: Write): boolean {
  return keysOf(write).some((key) => account.keys.has(key)) || (write.kind === "history_push" && account.deletes);
}

function keysOf(write: Write): string[] {
  switch (write.kind) {
    case "slot":
      return [`slot ${write.slotNumber}`];
    case "history_push":
      return [`id ${write.id}`, `hash ${write.contentHash}`];
    case "history_delete":
      return [`id ${write.id}`];
  }
}

function isTimed(write: Write): write is TimedSlotWrite {
  return write.kind === "slot" && write.timestamp !== null && write.baseSeq === null;
}

/**
 * A write against the greatest to its slot so far. Only where both are of one author: whether a token counts is decided
 * in the database, and one that doesn't must not stand in another's way.
 */
function duelWithGreatest(account: Account, write: TimedSlotWrite): { rival: Sent; order: number } | undefined {
  const greatest = account.greatest.get(write.slotNumber);
  if (greatest === undefined || !sameAuthor(greatest.write.author, write.author)) return undefined;
  return { rival: greatest.sent, order: compareSlotVersions(versionOf(write), versionOf(greatest.write)) };
}

function sameAuthor(left: Author, right: Author): boolean {
  return left.deviceId === right.deviceId && left.tokenGeneration === right.tokenGeneration;
}

function versionOf({ timestamp, author, blob }: TimedSlotWrite) {
  return { timestamp, deviceId: author.deviceId, contentHash: () => hashContent(Buffer.from(blob ?? "", "base64")) };
}

function send(sql: Sql, { sent, beaten, rounds }: Plan, limits: WriteLimits, now: number) {
  const accounts = new Set(sent.map(({ write }) => write.author.userId));
  const blobs: Buffer[] = [];
  let first = 1;
  const shortened = beaten.length > 0 || sent.some(({ passing }) => passing);
  const records = sent.map(({ place, write, round, step, passing }) => {
    const blob = Buffer.from("blob" in write ? (write.blob ?? "") : "", "base64");
    blobs.push(blob);
    const { author } = write;
    const record = recordLiteral([
      place,
      round,
      step,
      passing,
      author.userId,
      author.deviceId,
      author.tokenGeneration,
      ...contentOf(write),
      first,
      blob.length,
    ]);
    first += blob.length;
    return record;
  });
  return sql<Row[]>`
    SELECT * FROM apply_writes(
      ${arrayLiteral([...accounts])}, ${arrayLiteral(records)}, ${rounds}, ${shortened},
      ${Buffer.concat(blobs).toString("base64")}, ${now}, ${limits.historyItems}, ${limits.accountBytes}
    )`;
}

/** The middle fields of pending_write, from kind to expires. */
function contentOf(write: Write): (string | number | null)[] {
  switch (write.kind) {
    case "slot":
      return ["slot", write.slotNumber, write.timestamp, write.baseSeq, null, null, null, null];
    case "history_push":
      return ["push", null, null, null, write.id, write.contentHash, write.createdAt, write.expiresAt];
    case "history_delete":
      return ["delete", null, null, null, write.id, null, null, null];
  }
}

function readAnswer({ sent, beaten }: Plan, rows: readonly Row[]): AppliedBatch {
  const answers = new Map<number, Answer>();
  const evictions: Eviction[] = [];
  for (const row of rows) {
    if (row.verdict === "evicted") evictions.push(row.stored);
    else if (row.verdict !== "tight") answers.set(row.place, row);
  }
  const outcomes: WriteOutcome[] = [];
  const accounts = new Map<string, AccountProgress>();

  // Seqs grow in input order, and those of evictions follow: so changes come out in seq order.
  for (const { place, write, step } of sent) {
    const answer = answers.get(place);
    if (answer === undefined) throw new Error("apply_writes left a write without an answer");
    const outcome = outcomeOf(write, answer);
    outcomes[place] = outcome;
    if (outcome.result === "applied") tell(write.author.userId, outcome.change, outcome.seq - step);
  }
  for (const { userId, ...change } of evictions.toSorted((left, right) => left.seq - right.seq)) {
    tell(userId, change, change.seq - 1);
  }
  for (const { place, by, equal } of beaten) {
    const winner = outcomes[by.place];
    if (winner !== undefined) outcomes[place] = beatenOutcome(winner, equal);
  }
  return { outcomes, accounts: [...accounts.values()] };

  /** @param counter where the account's stood before, should this be its first change */
  function tell(userId: string, change: Change, counter: number): void {
    const progress = accounts.get(userId) ?? { userId, previousSeq: counter, seq: counter, changes: [] };
    accounts.set(userId, progress);
    progress.changes.push(change);
    progress.seq = change.seq;
  }
}

function outcomeOf(write: Write, answer: Answer): WriteOutcome {
  switch (answer.verdict) {
    case "applied":
      return { result: "applied", seq: answer.seq, change: changeOf(write, answer) };
    case "stale":
      return { result: "stale", seq: answer.seq, winner: answer.stored };
    case "duplicate":
      return { result: "duplicate", seq: answer.seq, stored: answer.stored };
    case "not_found":
    case "revoked":
    case "quota_exceeded":
      return { result: answer.verdict };
  }
}

function changeOf(write: Write, { seq, at }: { seq: number; at: number }): Change {
  const { deviceId } = write.author;
  switch (write.kind) {
    case "slot":
      return { kind: "slot", seq, slotNumber: write.slotNumber, blob: write.blob, updatedBy: deviceId, timestamp: at };
    case "history_push": {
      const { id, blob, contentHash, createdAt, expiresAt } = write;
      return { kind: "history", seq, id, blob, contentHash, deviceId, createdAt, expiresAt };
    }
    case "history_delete":
      return { kind: "history_deletion", seq, id: write.id };
  }
}

/** What became of a slot write that another of its author's beat, from what became of that one. */
function beatenOutcome(winner: WriteOutcome, equal: boolean): WriteOutcome {
  if (winner.result !== "applied" && winner.result !== "duplicate") return winner;
  const { seq } = winner;
  const stands = winner.result === "applied" ? winner.change : winner.stored;
  if (stands?.kind !== "slot") throw new Error("apply_writes answered for a slot with something else");
  const { kind, slotNumber, updatedBy, timestamp } = stands;
  const head: SlotHead = { kind, seq: stands.seq, slotNumber, updatedBy, timestamp };
  return equal ? { result: "duplicate", seq, stored: head } : { result: "stale", seq, winner: head };
}
