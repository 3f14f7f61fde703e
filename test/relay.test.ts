/**
 * The relay alone, with a database and sockets of the test's own: so each await can be made to end at the worst moment.
 */
import type { ServerWebSocket } from "bun";
import { describe, expect, test } from "bun:test";
import { memoryBus } from "../src/bus/memory.ts";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import { Delivery } from "../src/relay/catch-up.ts";
import { createHub, type Socket } from "../src/relay/hub.ts";
import { createPresence } from "../src/relay/presence.ts";
import type { Change, ChangePage, SlotChange, Storage } from "../src/storage/storage.ts";
import { nextTurn } from "../src/waiting.ts";

const USER = "user";

describe("where replay meets live", () => {
  test("[R3] a commit while the first socket of an account reads its last page is not missed", async () => {
    const world = createWorld(3);
    const socket = world.join(0);
    world.commit(4); // after the page was read, before it came
    await world.answerReads();
    world.commit(5);
    await world.answerReads();
    expect(socket.heard).toEqual([1, 2, 3, 4, 5]);
  });

  test("[R3] a commit while a second socket reads its last page comes after that page, once", async () => {
    const world = createWorld(3);
    const first = world.join(0);
    await world.answerReads();
    const second = world.join(0);
    world.commit(4);
    world.commit(5);
    await world.answerReads();
    world.commit(6);
    await world.answerReads();
    expect(second.heard).toEqual([1, 2, 3, 4, 5, 6]);
    expect(first.heard).toEqual([1, 2, 3, 4, 5, 6]);
  });

  test("[R1] [R3] another instance's changes come before a later one of this instance, however slow they are to read", async () => {
    const world = createWorld(3);
    const socket = world.join(3);
    await world.answerReads();
    world.commitElsewhere(4);
    world.commitElsewhere(5);
    world.hub.announce(USER, 5);
    world.commit(6);
    await world.answerReads();
    world.commit(7);
    await world.answerReads();
    expect(socket.heard).toEqual([4, 5, 6, 7]);
  });

  test("[R1] what another instance wrote and nobody told of is found by looking", async () => {
    const world = createWorld(3);
    const socket = world.join(3);
    await world.answerReads();
    world.commitElsewhere(4);
    await world.hub.look();
    await world.answerReads();
    expect(socket.heard).toEqual([4]);
  });

  test("[R3] a database that is away for a moment delays, and loses nothing", async () => {
    const world = createWorld(3);
    const socket = world.join(0);
    await world.failReads();
    expect(socket.heard).toEqual([]);
    world.commit(4);
    await world.failReads();
    await world.hub.look();
    await world.answerReads();
    expect(socket.heard).toEqual([1, 2, 3, 4]);
  });
});

describe("winners of writes that another instance took", () => {
  const slot = (seq: number, blob: string): SlotChange => {
    return { kind: "slot", seq, slotNumber: 1, blob, updatedBy: null, timestamp: seq };
  };

  test("[W6] a winner that the stream has not come to waits for it, and comes when its own write is passed over", async () => {
    const { delivery, sent } = await liveDelivery(10, slot(12, "winner"));
    await delivery.sendWinner(slot(12, "winner"));
    expect(sent).toEqual([]);
    delivery.passedOver({ kind: "history_deletion", seq: 11, id: "" });
    await nextTurn();
    expect(sent).toEqual([]);
    delivery.passedOver(slot(12, "winner"));
    await nextTurn();
    expect(sent).toEqual([expect.objectContaining({ seq: 12, encrypted_blob: "winner" })]);
  });

  test("[W6] it does not come once the client itself has written something newer", async () => {
    const { delivery, sent } = await liveDelivery(10, slot(13, "newer"));
    await delivery.sendWinner(slot(12, "winner"));
    delivery.passedOver(slot(13, "newer"));
    await nextTurn();
    expect(sent).toEqual([]);
  });

  test("[W6] it comes once, with the stream", async () => {
    const { delivery, sent } = await liveDelivery(10, slot(12, "winner"));
    await delivery.sendWinner(slot(12, "winner"));
    delivery.published(slot(12, "winner")); // the topic has sent it
    await nextTurn();
    expect(sent).toEqual([]);
  });

  test("[W6] what was published while it was read is not followed by something older", async () => {
    const read = Promise.withResolvers<SlotChange>();
    const { delivery, sent } = await liveDelivery(10, read.promise);
    const paid = delivery.sendWinner(slot(9, "winner"));
    delivery.published(slot(11, "newer"));
    read.resolve(slot(9, "winner"));
    await paid;
    expect(sent).toEqual([]);
  });

  test("[W6] the winners of two slots, one of which the stream comes to while the other is read, both come", async () => {
    const read = Promise.withResolvers<SlotChange>();
    const later = { ...slot(12, "later"), slotNumber: 2 };
    const { delivery, sent } = await liveDelivery(10, (slotNumber) => (slotNumber === 2 ? later : read.promise));
    await delivery.sendWinner(later);
    const paid = delivery.sendWinner(slot(9, "winner"));
    delivery.passedOver({ kind: "history_deletion", seq: 12, id: "" });
    read.resolve(slot(9, "winner"));
    await paid;
    expect(sent).toEqual([
      expect.objectContaining({ slot_number: 1, seq: 9 }),
      expect.objectContaining({ slot_number: 2, seq: 12 }),
    ]);
  });

  test("[R1] [W6] what stands by the time it is read may be ahead of the stream, which then brings it", async () => {
    const { delivery, sent } = await liveDelivery(10, slot(12, "newest"));
    await delivery.sendWinner(slot(9, "winner"));
    expect(sent).toEqual([]);
  });

  test("[R5] [W6] a winner waits while the socket's buffer is full", async () => {
    const { delivery, sent, buffer } = await liveDelivery(10, slot(9, "winner"));
    buffer.bytes = 2 ** 30;
    await delivery.sendWinner(slot(9, "winner"));
    expect(sent).toEqual([]);
    buffer.bytes = 0;
    delivery.drained();
    await nextTurn();
    expect(sent).toEqual([expect.objectContaining({ seq: 9 })]);
  });
});

/** A delivery of protocol 1 that has caught up to `seq`, and what it sends by itself. */
async function liveDelivery(
  seq: number,
  standing: SlotChange | Promise<SlotChange> | ((slotNumber: number) => SlotChange | Promise<SlotChange>),
) {
  const sent: unknown[] = [];
  const buffer = { bytes: 0 };
  const socket = {
    send: (text: string) => sent.push(JSON.parse(text)),
    ping() {},
    subscribe() {},
    unsubscribe() {},
    getBufferedAmount: () => buffer.bytes,
  };
  const delivery = new Delivery({
    socket: socket as unknown as ServerWebSocket<unknown>,
    storage: {
      changesAfter: () => Promise.reject(new Error("nothing is missed, so nothing is read")),
      slot: async (_userId, slotNumber) => (typeof standing === "function" ? standing(slotNumber) : standing),
    },
    channel: { topic: "", coveredSeq: seq, reached() {}, caughtUp: async () => {} },
    config: loadConfig({}),
    userId: "",
    fromSeq: seq,
    emptyUntilSeq: 0,
    confirms: true,
    onCaughtUp() {},
    onFault() {},
    onConfirmed() {},
  });
  await delivery.advance();
  expect(delivery.isLive).toBe(true);
  return { delivery, sent, buffer };
}

/** An account with so many changes, a hub, and reads that are answered when the test says so, with what stood when they were asked. */
function createWorld(seq: number) {
  const log: Change[] = [];
  const reads: { page: ChangePage; answer: (page: ChangePage) => void; refuse: (error: Error) => void }[] = [];
  const subscribers = new Set<{ heard: number[] }>();
  const config = loadConfig({});
  const storage = {
    dialect: "sqlite",
    changesAfter(_userId: string, after: number) {
      const changes = log.filter((change) => change.seq > after);
      const { promise, resolve, reject } = Promise.withResolvers<ChangePage>();
      const page = { changes, throughSeq: log.length, hasMore: false };
      reads.push({ page, answer: resolve, refuse: reject });
      return promise;
    },
    accountSeqs: async () => new Map([[USER, log.length]]),
  } as unknown as Storage;
  const quiet = createLogger({ level: "error", format: "json", write: () => {} });
  const hub = createHub({
    storage,
    config,
    bus: memoryBus(),
    presence: createPresence(storage, config, quiet),
    log: quiet,
    metrics: { caughtUp() {}, relayed() {} },
  });
  const publish = (_topic: string, message: string) => {
    for (const { heard } of subscribers) heard.push(JSON.parse(message).seq);
    return 0;
  };
  hub.attach({ publish });
  while (log.length < seq) commitElsewhere(log.length + 1);

  return {
    hub,
    commitElsewhere,
    /** As the writer does after a commit. */
    commit(next: number) {
      const change = commitElsewhere(next);
      hub.onCommit([{ userId: USER, previousSeq: next - 1, seq: next, changes: [change], origins: [undefined] }]);
    },
    /** A socket of protocol 2 that knows everything up to `fromSeq`; `heard` are the seqs it gets, in order. */
    join(fromSeq: number) {
      const heard: number[] = [];
      const socket = {
        heard,
        data: { userId: USER, deviceId: crypto.randomUUID(), protocol: 2, fromSeq, emptyUntilSeq: 0 },
        send: (text: string) => heard.push(JSON.parse(text).seq),
        subscribe: () => subscribers.add(socket),
        unsubscribe: () => subscribers.delete(socket),
        getBufferedAmount: () => 0,
      };
      hub.join(socket as unknown as Socket, () => {});
      return socket;
    },
    /** Until nobody reads any more. */
    async answerReads() {
      for (let read = await nextRead(); read !== undefined; read = await nextRead()) read.answer(read.page);
    },
    async failReads() {
      for (let read = await nextRead(); read !== undefined; read = await nextRead()) read.refuse(new Error("away"));
    },
  };

  function commitElsewhere(next: number): Change {
    const change: Change = { kind: "history_deletion", seq: next, id: String(next) };
    log.push(change);
    return change;
  }

  /** Whatever is to be read because of the last answer has been asked for after a turn of the loop. */
  async function nextRead() {
    await new Promise((resolve) => setImmediate(resolve));
    return reads.shift();
  }
}
