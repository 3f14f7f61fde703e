/** The slots of the signed-in account. */
import type { Sessions } from "../accounts/sessions.ts";
import type { Config } from "../config.ts";
import { formatTime, type Protocol } from "../protocol.ts";
import type { SlotWrite, Storage, StoredSlot, WriteOutcome } from "../storage/storage.ts";
import { validate } from "../validate.ts";
import type { AppContext } from "./context.ts";
import { readBody } from "./read-body.ts";
import { accountFull, submit, type RestWriter } from "./written.ts";

export interface SlotDependencies {
  config: Config;
  protocol: Protocol;
  storage: Pick<Storage, "slots">;
  sessions: Sessions;
  writer: RestWriter;
}

export function slotHandlers({ config, protocol, storage, sessions, writer }: SlotDependencies) {
  return {
    list: async (c: AppContext) => {
      const slots = await storage.slots(c.var.identity.userId);
      return c.json(slots.map(slotToWire));
    },

    /** Answers what stands now: this write, or (`stale`, `duplicate`) the one that was there before it. */
    put: async (c: AppContext) => {
      const slotNumber = validate(protocol.slotNumber, c.req.param("number"), "The slot's number");
      const body = await readBody(c.req.raw, protocol.slotPut, config.maxBodyBytes);
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

export function slotToWire(slot: StoredSlot) {
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
