/** What the hub asks of its storage, and when, also in the worst moment; what it does for sockets is tested through the front door. */
import { expect, test } from "bun:test";
import { loadConfig, type Config } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import { createHub, type Socket, type SocketData } from "../src/relay/hub.ts";
import type { Change, ChangePage, Storage } from "../src/storage/storage.ts";
import { within } from "./harness.ts";
import { uuid } from "./storage-fixtures.ts";

const ACCOUNTS = 1_234;

test("looking for changes asks for some accounts at a time, with a turn for others in between", async () => {
  const events: string[] = [];
  const asked: string[] = [];
  const storage = {
    changesAfter: () => Promise.withResolvers<never>().promise,
    accountSeqs(userIds: readonly string[]) {
      events.push(userIds.length > 500 ? "too many" : "asked");
      asked.push(...userIds);
      return Promise.resolve(new Map<string, number>());
    },
  } as unknown as Storage;
  const hub = hubOver(storage);
  const userIds = Array.from({ length: ACCOUNTS }, uuid);
  for (const userId of userIds) hub.join(socketOf(userId), () => {});

  let looking = true;
  const looked = hub.look().finally(() => (looking = false));
  while (looking) {
    await new Promise<void>((resolve) => void setImmediate(resolve));
    events.push("turn");
  }
  await looked;
  expect(events.slice(0, 5)).toEqual(["asked", "turn", "asked", "turn", "asked"]);
  expect(asked).toEqual(userIds);
});

test("[R1] what is told in the moment in which a channel has come to its end is looked for, too", async () => {
  const { reads, storage } = storageByHand();
  const hub = hubOver(storage);
  const socket = socketOf(uuid());
  hub.join(socket, () => {});
  (await reads.next()).answer([]);
  await turn();
  hub.announce(socket.data.userId, 1);
  const read = await reads.next();
  // Called in the turn in which the page has been published, before anybody hears that the channel is through.
  void read.page.then(() => hub.announce(socket.data.userId, 2));
  read.answer([deletion(1)]);
  expect((await reads.next()).afterSeq).toBe(1);
});

test("[R1] a channel that lags behind keeps so many of its writers in mind; the others hear their own changes", async () => {
  const { reads, storage } = storageByHand();
  const hub = hubOver(storage, (config) => ({ ...config, relay: { ...config.relay, rememberedOrigins: 2 } }));
  const published: number[] = [];
  hub.attach({
    publish: (_topic, message) => published.push(typeof message === "string" ? JSON.parse(message).seq : -1),
  });
  const socket = socketOf(uuid());
  const { userId } = socket.data;
  hub.join(socket, () => {});
  const first = await reads.next();
  const origin = { socket, confirmedCount: 0, claimedTimestamp: null };
  const changes = [deletion(1), deletion(2), deletion(3)];
  for (const change of changes) {
    hub.onCommit([{ userId, previousSeq: change.seq - 1, seq: change.seq, changes: [change], origins: [origin] }]);
  }
  first.answer([]);
  (await reads.next()).answer(changes);
  await turn();
  // Nobody else is there: it is sent what is not known to be its own.
  expect(published).toEqual([3]);
});

const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));
const deletion = (seq: number): Change => ({ kind: "history_deletion", seq, id: uuid() });

function hubOver(storage: Storage, adjust = (config: Config) => config) {
  return createHub({
    storage,
    config: adjust(loadConfig({})),
    bus: { tell() {}, listen: () => Promise.resolve(), close: () => Promise.resolve() },
    presence: {
      note() {},
      hold() {},
      unwrittenSeq: () => 0,
      isHeldElsewhere: () => false,
      flush: () => Promise.resolve(),
    },
    log: createLogger({ level: "error", format: "text", write: () => {} }),
    metrics: { caughtUp() {}, relayed() {} },
  });
}

/** A storage whose reads of changes the test answers, one by one. */
function storageByHand() {
  const waiting: ReturnType<typeof readAfter>[] = [];
  let wake = () => {};
  const storage = {
    changesAfter(_userId: string, afterSeq: number) {
      const read = readAfter(afterSeq);
      waiting.push(read);
      // Not before whoever asked waits for the answer.
      queueMicrotask(() => wake());
      return read.page;
    },
  } as unknown as Storage;
  const reads = {
    async next() {
      while (waiting.length === 0) await within(new Promise<void>((resolve) => (wake = resolve)), "a read of changes");
      await turn();
      return waiting.shift() ?? readAfter(0);
    },
  };
  return { reads, storage };
}

function readAfter(afterSeq: number) {
  const { promise: page, resolve } = Promise.withResolvers<ChangePage>();
  const answer = (changes: Change[]) =>
    resolve({ changes, throughSeq: changes.at(-1)?.seq ?? afterSeq, hasMore: false });
  return { afterSeq, page, answer };
}

function socketOf(userId: string): Socket {
  const data: Partial<SocketData> = { userId, deviceId: uuid(), protocol: 2, fromSeq: 0, emptyUntilSeq: 0 };
  return { data, getBufferedAmount: () => 0, subscribe() {} } as unknown as Socket;
}
