/** One seed's account, and what was promised to anyone about it: the checks at the end compare with that. */
import type { Message } from "../harness.ts";
import type { Host } from "./host.ts";

/** The server said of a write that it stands at this seq. */
export interface Promised {
  kind: "slot" | "push" | "delete";
  /** The slot's number or the item's id. */
  key: string;
  /** null: cleared. */
  content: string | null;
  seq: number;
}

export interface World {
  readonly seed: number;
  readonly host: Host;
  readonly token: string;
  /** Every content that anyone ever wrote: the server invents none. */
  readonly written: Set<string>;
  /** Ids that anyone ever asked to delete. */
  readonly deletions: Set<string>;
  readonly promised: Promised[];
  /** What happened, for whoever looks for the cause of a failure. */
  note(line: string): void;
}

export class SimulationFailure extends Error {
  override readonly name = "SimulationFailure";
}

export function fail(world: Pick<World, "seed">, message: string): never {
  throw new SimulationFailure(`seed ${world.seed}: ${message}`);
}

export interface Answer {
  status: number;
  body: any;
}

const RETRY_MS = 5;
const DEADLINE_MS = 60_000;
const REQUEST_DEADLINE_MS = 15_000;

/**
 * A request that is repeated until it is answered, as by a client that can't know whether the last one arrived.
 *
 * @param address asked before each try
 */
export async function ask(
  address: () => string,
  method: string,
  path: string,
  { token, body }: { token?: string; body?: unknown } = {},
): Promise<Answer> {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    try {
      const response = await fetch(address() + path, {
        method,
        keepalive: false,
        headers: token === undefined ? {} : { Authorization: `Bearer ${token}` },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(REQUEST_DEADLINE_MS),
      });
      const text = await response.text();
      if (response.status < 500) return { status: response.status, body: text === "" ? undefined : JSON.parse(text) };
      if (response.status !== 503)
        throw new SimulationFailure(`${method} ${path} answered ${response.status}: ${text}`);
    } catch (error) {
      if (error instanceof SimulationFailure || Date.now() > deadline) throw error;
    }
    await Bun.sleep(RETRY_MS);
  }
}

/** What stands on the server when all is quiet. */
export interface Truth {
  /** By number; null: cleared. */
  slots: Map<number, { content: string | null; seq: number }>;
  /** Living items by id. */
  history: Map<string, { content: string; seq: number }>;
  /** Deleted ids, and at which seq. */
  deleted: Map<string, number>;
  /** The last change's. */
  seq: number;
}

/** @param cursor from when the account was empty: so nothing that was deleted since is left out */
export async function readTruth(world: World, cursor: string): Promise<Truth> {
  const truth: Truth = { slots: new Map(), history: new Map(), deleted: new Map(), seq: 0 };
  let place = cursor;
  for (let more = true; more;) {
    const { body } = await ask(world.host.url, "GET", `/api/sync/changes?limit=1000&cursor=${place}`, world);
    for (const change of body.changes as Message[]) {
      if (change["seq"] <= truth.seq) fail(world, `the changes go from seq ${truth.seq} to ${change["seq"]}`);
      truth.seq = change["seq"];
      addToTruth(truth, change);
    }
    place = body.cursor;
    more = body.has_more;
  }
  return truth;
}

function addToTruth({ slots, history, deleted }: Truth, change: Message): void {
  const { seq } = change as unknown as { seq: number };
  if (change.type === "slot_updated") slots.set(change["slot_number"], { content: change["encrypted_blob"], seq });
  if (change.type === "slot_cleared") slots.set(change["slot_number"], { content: null, seq });
  if (change.type === "history_new") history.set(change["id"], { content: change["encrypted_blob"], seq });
  if (change.type === "history_deleted") deleted.set(change["id"], seq);
}
