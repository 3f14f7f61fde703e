/** The parts of the reference client, each alone. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { join } from "node:path";
import { createBackoff, type ChangeMessage } from "../src/client/index.ts";
import { createOutbox } from "../src/client/outbox.ts";
import { createReplica } from "../src/client/replica.ts";

describe("the parts of the reference client", () => {
  test("it needs nothing but the platform: no module, no global of Bun or Node", async () => {
    const built = await Bun.build({
      entrypoints: [join(import.meta.dir, "../src/client/index.ts")],
      target: "browser",
    });
    expect(built.success).toBe(true);
    const code = await built.outputs[0]?.text();
    expect(code).not.toMatch(/\bBun\b|\bBuffer\b|\bprocess\b|\brequire\(|\bimport\s|node:/);
  });

  test("[P5] the replica ends the same wherever it was cut off and however often it is told again", () => {
    const act = fc.record({ item: fc.boolean(), which: fc.integer({ min: 1, max: 4 }), ends: fc.boolean() });
    fc.assert(
      fc.property(fc.array(act, { maxLength: 30 }), fc.array(fc.nat({ max: 30 })), (acts, cuts) => {
        const messages = toMessages(acts);
        const steady = createReplica();
        for (const message of messages) steady.apply(message);
        const cutOff = createReplica();
        for (const message of messages.slice(0, cuts[0] ?? 0)) cutOff.apply(message);
        for (const cursor of cuts) for (const message of messagesAfter(messages, cursor)) cutOff.apply(message);
        for (const message of messagesAfter(messages, 0)) cutOff.apply(message);
        expect(sorted(cutOff)).toEqual(sorted(steady));
        for (const message of messagesAfter(messages, 0)) expect(cutOff.apply(message)).toBe(false);
        // The answer to an own write may come later than what replaced it.
        for (const message of messages) if ("slot_number" in message) expect(cutOff.apply(message)).toBe(false);
        expect(sorted(cutOff)).toEqual(sorted(steady));
      }),
    );
  });

  test("the outbox is bounded, keeps order within a slot or item, and retries what was only busy", async () => {
    const outbox = createOutbox({ maxEntries: 3, maxInFlight: 2 });
    const write = (slot: number) => ({ type: "slot_clear", slot_number: slot, timestamp: 1 }) as const;
    const first = outbox.add(write(1));
    const [sent] = outbox.take();
    void outbox.add(write(1)); // waits for the first
    expect(outbox.take()).toEqual([]);
    void outbox.add(write(2));
    expect(outbox.take()).toHaveLength(1);
    expect(await outbox.add(write(3))).toMatchObject({ result: "refused", code: "outbox_full" });

    const ref = sent?.ref ?? "";
    expect(outbox.fail({ type: "error", code: "busy", message: "", ref, retry_after_ms: 7 })).toBe(7);
    expect(outbox.take().map((entry) => entry.ref)).toEqual([ref]);
    outbox.requeue();
    expect(outbox.take().map((entry) => entry.write.type === "slot_clear" && entry.write.slot_number)).toEqual([1, 2]);
    outbox.acknowledge({ type: "ack", ref, result: "applied", seq: 5 });
    expect(await first).toEqual({ result: "applied", seq: 5 });
    expect(outbox.take()).toHaveLength(1);
  });

  test("the backoff doubles up to its bound, at random, and starts again", () => {
    const backoff = createBackoff({ firstMs: 100, maxMs: 1_000, random: () => 1 });
    expect(Array.from({ length: 6 }, () => backoff.next())).toEqual([100, 200, 400, 800, 1_000, 1_000]);
    backoff.reset();
    expect(backoff.next()).toBe(100);
    const jittered = createBackoff({ firstMs: 100, random: () => 0.25 });
    expect([jittered.next(), jittered.next()]).toEqual([25, 50]);
  });
});

/** What live sockets hear: slots that are set or cleared, items that come and (at their next mention) go for good. */
function toMessages(acts: { item: boolean; which: number; ends: boolean }[]): ChangeMessage[] {
  const living = new Map<number, string>();
  return acts.map(({ item, which, ends }, index): ChangeMessage => {
    const seq = index + 1;
    if (!item) {
      const place = { slot_number: which, timestamp: seq, seq };
      if (ends) return { type: "slot_cleared", cleared_by: "", ...place };
      return { type: "slot_updated", encrypted_blob: String(seq), updated_by: "", ...place };
    }
    const id = living.get(which);
    if (id !== undefined) {
      living.delete(which);
      return { type: "history_deleted", id, seq };
    }
    living.set(which, `${which} ${seq}`);
    const content = { encrypted_blob: "", content_hash: "", device_id: "", created_at: "" };
    return { type: "history_new", id: `${which} ${seq}`, ...content, seq };
  });
}

/** What a catch-up tells of them: of each slot and item the last, when it is newer than the cursor. */
function messagesAfter(messages: ChangeMessage[], cursor: number): ChangeMessage[] {
  const last = new Map(messages.map((message) => ["id" in message ? message.id : message.slot_number, message]));
  return messages.filter((message) => message.seq > cursor && [...last.values()].includes(message));
}

function sorted(replica: ReturnType<typeof createReplica>) {
  return {
    slots: [...replica.slots.values()].toSorted((left, right) => left.slotNumber - right.slotNumber),
    history: [...replica.history.values()].toSorted((left, right) => left.seq - right.seq),
  };
}
