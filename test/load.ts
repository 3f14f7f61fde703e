/** Writes that keep coming, at a rate of their own and not as fast as they are answered. */
import {
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  TestSocket,
  within,
  type Connection,
} from "./harness.ts";

const TICK_MS = 10;

export interface Load {
  /** Ids of history items whose write was acknowledged. */
  readonly acknowledged: ReadonlySet<string>;
  /** Milliseconds from sending a write to its acknowledgement. */
  readonly waits: readonly number[];
  /** Resolves when so many more writes are acknowledged. */
  more(count: number): Promise<void>;
  /** Sends no more, and waits for what is on its way. */
  stop(): Promise<void>;
}

export interface LoadOptions {
  writesPerSecond?: number;
  sockets?: number;
  blobBytes?: number;
  /** Told of each write when it is acknowledged. */
  onAcknowledged?: (id: string, waitedMs: number) => void;
}

/** Starts devices of several accounts that together push so many history items a second. */
export async function startLoad(
  server: Connection,
  { writesPerSecond = 1_000, sockets: socketCount = 5, blobBytes = 300, onAcknowledged }: LoadOptions = {},
): Promise<Load> {
  const acknowledged = new Set<string>();
  const waits: number[] = [];
  const goals: { count: number; reach: () => void }[] = [];
  let stopped = false;
  const perTick = (writesPerSecond * TICK_MS) / 1_000 / socketCount;
  const writing = await Promise.all(
    Array.from({ length: socketCount }, async () => {
      const device = await createDevice(server, await createAccount(server));
      return write(await TestSocket.open(server, device.token, "&protocol=2"));
    }),
  );
  return {
    acknowledged,
    waits,
    more: (count) => new Promise((resolve) => goals.push({ count: acknowledged.size + count, reach: resolve })),
    async stop() {
      stopped = true;
      await Promise.all(writing.map(({ ended }) => ended));
    },
  };

  function write(socket: TestSocket) {
    const sentAt = new Map<string, number>();
    const drained = Promise.withResolvers<void>();
    const sending = (async () => {
      const begun = performance.now();
      for (let sent = 0; !stopped; await Bun.sleep(TICK_MS)) {
        const due = Math.floor(((performance.now() - begun) / TICK_MS) * perTick);
        for (; sent < due; sent += 1) {
          const push = historyPush(randomBlob(blobBytes));
          sentAt.set(push.id, performance.now());
          socket.send({ ...push, ref: push.id });
        }
      }
      if (sentAt.size > 0) await within(drained.promise, "the last acknowledgements");
      await socket.close();
    })();
    socket.onMessage = ({ type, ref, result }) => {
      if (type !== "ack" || result !== "applied") return;
      const waitedMs = performance.now() - (sentAt.get(ref) ?? Number.NaN);
      waits.push(waitedMs);
      acknowledged.add(ref);
      onAcknowledged?.(ref, waitedMs);
      for (const goal of goals) if (acknowledged.size === goal.count) goal.reach();
      sentAt.delete(ref);
      if (stopped && sentAt.size === 0) drained.resolve();
    };
    return { ended: sending };
  }
}
