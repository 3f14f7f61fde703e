/**
 * A batch of writes as the parameters of the SQL function apply_writes (drizzle/postgres/0001_functions.sql), and its
 * answer as the port's.
 */
import { compareSlotVersions } from "../merge.ts";
import type {
  AccountProgress,
  AppliedBatch,
  Change,
  HistoryChange,
  HistoryDeletion,
  SlotChange,
  SlotWrite,
  Write,
  WriteLimits,
  WriteOutcome,
} from "../storage.ts";
import { arrayLiteral, recordLiteral } from "./literals.ts";
import type { Sql } from "./pool.ts";

/** A row of apply_writes. */
type Row =
  | { place: number; verdict: "applied"; seq: number; at: number }
  | { place: number; verdict: "stale"; seq: number; stored: SlotChange | null }
  | { place: number; verdict: "duplicate"; seq: number; stored: SlotChange | HistoryChange | null }
  | { place: number; verdict: "not_found" | "revoked" | "quota_exceeded" }
  | { place: null; verdict: "evicted"; stored: HistoryDeletion & { userId: string } }
  | { place: null; verdict: "tight" };

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
  const plan = planBatch(writes, { overtake: true });
  const rows = await send(sql, plan, limits, now);
  if (rows[0]?.verdict !== "tight") return readAnswer(plan, rows, writes.length);
  const separate = planBatch(writes, { overtake: false });
  return readAnswer(separate, await send(sql, separate, limits, now), writes.length);
}

/** As little as an account has to remember of the round it is in. */
interface Account {
  round: number;
  steps: number;
  keys: Set<string>;
  deletes: boolean;
  /** The greatest write to each slot so far, where the next may overtake it. */
  greatest: Map<number, Sent>;
}

/**
 * Arranges writes into rounds as apply_writes wants them: the effect is that of one write after another.
 *
 * A device that updates one slot again and again fills a batch with versions of which all but the last are overwritten
 * at once. They are compared here, by the rule of [W2], and only the last is stored. Where `overtake` is false each has
 * a round of its own.
 */
function planBatch(writes: readonly Write[], { overtake }: { overtake: boolean }): Plan {
  const accounts = new Map<string, Account>();
  const sent: Sent[] = [];
  const beaten: Beaten[] = [];
  let rounds = 1;

  for (const [place, write] of writes.entries()) {
    const account = accounts.get(write.author.userId) ?? newRound(1, 0);
    accounts.set(write.author.userId, account);
    const rival = overtake && write.kind === "slot" ? account.greatest.get(write.slotNumber) : undefined;
    if (rival !== undefined && write.kind === "slot" && comparable(rival.write, write)) {
      const order = compareSlotVersions(version(write), version(rival.write));
      if (order <= 0) {
        beaten.push({ place, by: rival, equal: order === 0 });
        continue;
      }
      rival.passing = true;
    } else if (clashes(account, write)) {
      Object.assign(account, newRound(account.round + 1, account.steps));
      rounds = Math.max(rounds, account.round);
    }
    account.steps += 1;
    const one: Sent = { place, write, round: account.round, step: account.steps, passing: false };
    sent.push(one);
    for (const key of keysOf(write)) account.keys.add(key);
    account.deletes ||= write.kind === "history_delete";
    if (write.kind === "slot") account.greatest.set(write.slotNumber, one);
  }
  return { sent, beaten, rounds };
}

function newRound(round: number, steps: number): Account {
  return { round, steps, keys: new Set(), deletes: false, greatest: new Map() };
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

/** [W2] alone decides between the two: one author, each with a timestamp and without a base. */
function comparable(left: Write, right: SlotWrite): left is SlotWrite & { timestamp: number } {
  return (
    left.kind === "slot" &&
    left.author.deviceId === right.author.deviceId &&
    left.author.tokenGeneration === right.author.tokenGeneration &&
    [left, right].every(({ timestamp, baseSeq }) => timestamp !== null && baseSeq === null)
  );
}

function version({ timestamp, author, blob }: SlotWrite) {
  return { timestamp: timestamp ?? 0, deviceId: author.deviceId, content: () => Buffer.from(blob ?? "", "base64") };
}

function send(sql: Sql, { sent, rounds }: Plan, limits: WriteLimits, now: number) {
  const accounts = new Set(sent.map(({ write }) => write.author.userId));
  const blobs: Buffer[] = [];
  let first = 1;
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
      ${arrayLiteral([...accounts])}, ${arrayLiteral(records)}, ${rounds}, ${sent.some(({ passing }) => passing)},
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

function readAnswer({ sent, beaten }: Plan, rows: Row[], count: number): AppliedBatch {
  const byPlace = new Map(sent.map((one) => [one.place, one]));
  const outcomes = new Array<WriteOutcome | undefined>(count).fill(undefined);
  const accounts = new Map<string, AccountProgress>();

  // Changes are told in seq order; the rows come in no order.
  const ordered = rows.toSorted((left, right) => seqOf(left) - seqOf(right));
  for (const row of ordered) {
    if (row.place === null) {
      if (row.verdict !== "evicted") continue;
      const { userId, ...change } = row.stored;
      progressOf(userId, change.seq - 1).changes.push(change);
      continue;
    }
    const one = byPlace.get(row.place);
    if (one === undefined) throw new Error(`apply_writes answered for place ${row.place}, which is not in the batch`);
    outcomes[row.place] = outcomeOf(one, row);
    const outcome = outcomes[row.place];
    if (outcome?.result === "applied") {
      progressOf(one.write.author.userId, row.verdict === "applied" ? row.seq - one.step : 0).changes.push(outcome.change);
    }
  }
  for (const one of beaten) outcomes[one.place] = beatenOutcome(one, outcomes[one.by.place]);
  for (const progress of accounts.values()) progress.seq = progress.changes.at(-1)?.seq ?? progress.previousSeq;
  return { outcomes: outcomes.map(present), accounts: [...accounts.values()] };

  /** The account's first change says where its counter stood. */
  function progressOf(userId: string, previousSeq: number): AccountProgress {
    let progress = accounts.get(userId);
    if (progress === undefined) {
      progress = { userId, previousSeq, seq: previousSeq, changes: [] };
      accounts.set(userId, progress);
    }
    return progress;
  }
}
