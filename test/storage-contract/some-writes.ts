/** Writes drawn at random, from so few values that they meet; and outcomes as different accounts can share them. */
import fc from "fast-check";
import type { Change, HistoryHead, SlotHead, Write, WriteOutcome } from "../../src/storage/storage.ts";
import { type Account, blobOf, blobOfBytes, deletion, push, slot, uuid } from "../storage-fixtures.ts";

export const someWrite = fc.record({
  kind: fc.constantFrom("slot", "slot", "push", "delete"),
  device: fc.integer({ min: 0, max: 2 }),
  slotNumber: fc.integer({ min: 1, max: 2 }),
  timestamp: fc.option(fc.integer({ min: 1, max: 5 }), { freq: 5 }),
  upon: fc.option(fc.integer({ min: 0, max: 20 }), { freq: 3 }),
  content: fc.constantFrom(null, blobOf("a"), blobOf("b"), blobOfBytes(50), blobOfBytes(90)),
  id: fc.integer({ min: 0, max: 3 }),
  hash: fc.constantFrom("h1", "h2"),
});

export type DrawnWrite = typeof someWrite extends fc.Arbitrary<infer T> ? T : never;

/**
 * @param ids of history items
 * @param seqs that the sender can have seen: a slot write may be made upon one of them
 */
export function writeOf(draw: DrawnWrite, account: Account, ids: readonly string[], seqs: readonly number[]): Write {
  const author = [account.accountAuthor, account.author, account.second][draw.device] ?? account.author;
  const id = ids[draw.id] ?? uuid();
  const { slotNumber, timestamp, content } = draw;
  const baseSeq = draw.upon === null ? null : (seqs[draw.upon] ?? null);
  if (draw.kind === "slot") return slot(author, { slotNumber, timestamp, baseSeq, blob: content });
  if (draw.kind === "push") return push(author, { id, contentHash: draw.hash, blob: content ?? blobOf("c") });
  return deletion(author, id);
}

export function appliedSeqs(outcomes: readonly WriteOutcome[]): number[] {
  return outcomes.flatMap((outcome) => (outcome.result === "applied" ? [outcome.seq] : []));
}

/**
 * With devices by their number, and seqs by their place (numbers may stay unused).
 *
 * @param seqs of all that was applied to the account, in order
 */
export function sharedView(account: Account, seqs: readonly number[]) {
  const place = (seq: number) => seqs.indexOf(seq);
  const device = (id: string | null) => (id === null ? null : account.devices.indexOf(id));
  const change = (one: Change | null) => {
    if (one?.kind === "slot") return { ...one, seq: place(one.seq), updatedBy: device(one.updatedBy) };
    if (one?.kind === "history") return { ...one, seq: place(one.seq), deviceId: device(one.deviceId) };
    return one === null ? null : { ...one, seq: place(one.seq) };
  };
  const head = (one: SlotHead | HistoryHead | null) => {
    if (one?.kind === "slot") return { ...one, seq: place(one.seq), updatedBy: device(one.updatedBy) };
    return one === null ? null : { ...one, seq: place(one.seq) };
  };
  const outcome = (one: WriteOutcome) => {
    switch (one.result) {
      case "applied":
        return { result: one.result, seq: place(one.seq), change: change(one.change) };
      case "stale":
        return { result: one.result, seq: place(one.seq), winner: head(one.winner) };
      case "duplicate":
        return { result: one.result, seq: place(one.seq), stored: head(one.stored) };
      case "not_found":
      case "revoked":
      case "quota_exceeded":
        return one;
    }
  };
  return { change: (one: Change) => change(one), outcome };
}
