/** What the hub asks of its storage; what it does for sockets is tested through the front door. */
import { expect, test } from "bun:test";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import { createHub, type Socket, type SocketData } from "../src/relay/hub.ts";
import type { Storage } from "../src/storage/storage.ts";
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
  const hub = createHub({
    storage,
    config: loadConfig({}),
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

function socketOf(userId: string): Socket {
  const data: Partial<SocketData> = { userId, deviceId: uuid(), protocol: 2, fromSeq: 0, emptyUntilSeq: 0 };
  return { data, getBufferedAmount: () => 0 } as unknown as Socket;
}
