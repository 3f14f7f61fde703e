/** The slots of the signed-in account. */
import type { Sessions } from "../accounts/sessions.ts";
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import { formatTime, type Protocol } from "../protocol.ts";
import type { FloodGuards } from "../relay/flood.ts";
import type { SlotWrite, Storage, StoredSlot, WriteOutcome } from "../storage/storage.ts";
import { validate } from "../validate.ts";
import { nextTurn } from "../waiting.ts";
import type { AppContext } from "./context.ts";
import { readBody } from "./read-body.ts";
import { jsonArray, streamJson, type StreamDependencies } from "./stream.ts";
import { accountFull, countWrites, submit, type RestWriter } from "./written.ts";

export interface SlotDependencies {
  config: Config;
  protocol: Protocol;
  log: Logger;
  limits: StreamDependencies["limits"];
  storage: Pick<Storage, "slot" | "slots">;
  sessions: Sessions;
  floodGuards: FloodGuards;
  writer: RestWriter;
}

/** Handlers of slots, one a route of app.ts. */
export function slotHandlers({
  config,
  log,
  limits,
  protocol,
  storage,
  sessions,
  floodGuards,
  writer,
}: SlotDependencies) {
  return {
    list: async (c: AppContext) => {
      const { userId } = c.var.identity;
      const slots = await storage.slots(userId, config.sync.historyPageBytes);
      if (slots !== null) return c.json(slots.map(slotToWire));
      return streamJson(c, { log, limits }, jsonArray(slotsOneByOne(storage, userId, config)));
    },

    /** Answers what stands now: this write, or (`stale`, `duplicate`) the one that was there before it. */
    put: async (c: AppContext) => {
      const slotNumber = validate(protocol.slotNumber, c.req.param("number"), "The slot's number");
      const body = await readBody(c.req.raw, protocol.slotPut, config.maxBodyBytes);
      countWrites(floodGuards, c.var.identity, [body]);
      const outcome = await write(c, {
        slotNumber,
        blob: body.encrypted_blob,
        timestamp: body.timestamp ?? null,
        baseSeq: body.base_seq ?? null,
      });
      const standing = standingSlot(outcome);
      return c.json({
        slot_number: slotNumber,
        updated_at: formatTime(standing.timestamp),
        updated_by: standing.updatedBy,
        seq: standing.seq,
        result: outcome.result,
      });
    },

    clear: async (c: AppContext) => {
      const slotNumber = validate(protocol.slotNumber, c.req.param("number"), "The slot's number");
      countWrites(floodGuards, c.var.identity, [{}]);
      await write(c, { slotNumber, blob: null, timestamp: null, baseSeq: null });
      return c.body(null, 204);
    },
  };

  async function write(c: AppContext, slot: Omit<SlotWrite, "kind" | "author">) {
    const outcome = await submit(writer, sessions, { kind: "slot", author: c.var.identity, ...slot });
    if (outcome.result === "quota_exceeded") throw accountFull();
    return outcome;
  }
}

/** As on the wire, each as it stands when its turn comes: together they may be more than memory is spared for. */
export async function* slotsOneByOne(
  storage: Pick<Storage, "slot">,
  userId: string,
  config: Config,
): AsyncGenerator<object> {
  for (let slotNumber = 1; slotNumber <= config.sync.slotCount; slotNumber += 1) {
    const stands = await storage.slot(userId, slotNumber);
    if (stands === null || stands.blob === null) continue;
    yield slotToWire({ ...stands, blob: stands.blob, updatedAt: stands.timestamp });
    await nextTurn();
  }
}

/** As it stands in GET /api/sync/slots. */
function slotToWire(slot: StoredSlot) {
  return {
    slot_number: slot.slotNumber,
    encrypted_blob: slot.blob,
    updated_at: formatTime(slot.updatedAt),
    updated_by: slot.updatedBy,
    seq: slot.seq,
  };
}

/** Of every outcome a slot can have, what it leaves standing. */
function standingSlot(outcome: WriteOutcome) {
  if (outcome.result === "applied" && outcome.change.kind === "slot") return outcome.change;
  if (outcome.result === "stale" && outcome.winner !== null) return outcome.winner;
  if (outcome.result === "duplicate" && outcome.stored?.kind === "slot") return outcome.stored;
  throw new Error(`a slot can't have the outcome ${outcome.result} without a slot that stands`);
}
