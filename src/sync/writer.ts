/**
 * The one path of every write ([W10]), with group commit: while one batch is being committed the next one gathers, so
 * an idle server adds no wait and a busy one commits many writes with one fsync. The order is [W1]: commit, then hand
 * the changes to the relay, then answer the writers.
 */
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import { NO_METRICS, type Metrics } from "../metrics/metrics.ts";
import type { AccountProgress, Storage, Write, WriteOutcome } from "../storage/storage.ts";
import { createFairQueue, type Queueable } from "./fair-queue.ts";

/** What a batch did to one account, and where each change came from. */
export interface Commit<Origin> extends AccountProgress {
  /** Beside `changes`; undefined for a write that came from no socket. */
  origins: (Origin | undefined)[];
}

export interface Writer<Origin> {
  /**
   * Queues a write; resolves when it is durable and the relay has heard of it.
   *
   * @param origin the socket it came from, which does not get it back ([R1])
   * @throws AppError `busy` when the queue, or the account's share of it, is full, `unavailable` or `disk_full` when the database can't take it
   */
  submit(write: Write, origin?: Origin): Promise<WriteOutcome>;
  /** Resolves when nothing waits and nothing is being committed. */
  idle(): Promise<void>;
  /** Writes waiting or being committed. */
  readonly depth: number;
}

export interface WriterOptions<Origin> {
  storage: Storage;
  config: Config;
  /** Hears of every commit, in commit order, before its writers do. */
  onCommit: (commits: Commit<Origin>[]) => void;
  metrics?: Pick<Metrics, "committed" | "written">;
  now?: () => number;
}

interface Pending<Origin> extends Queueable {
  write: Write;
  origin: Origin | undefined;
  resolve: (outcome: WriteOutcome) => void;
  reject: (error: unknown) => void;
}

/** One for a database: a second one beside it would break the order of changes ([W9]). */
export function createWriter<Origin>({
  storage,
  config,
  onCommit,
  metrics = NO_METRICS,
  now = Date.now,
}: WriterOptions<Origin>): Writer<Origin> {
  const { batch: batchBounds, queue: queueBounds, accountQueue, busyRetryMs } = config.writer;
  const limits = { historyItems: config.historyLimit, accountBytes: config.accountStorageBytes };
  const queue = createFairQueue<Pending<Origin>>(queueBounds, accountQueue);
  let committing = 0;
  let scheduled = false;
  const idleWaiters: (() => void)[] = [];

  return {
    submit(write, origin) {
      return new Promise((resolve, reject) => {
        const { userId: account } = write.author;
        if (queue.add({ account, bytes: sizeOf(write), write: bounded(write), origin, resolve, reject })) schedule();
        else reject(new AppError("busy", "The server is busy; try again in a moment.", { retryAfterMs: busyRetryMs }));
      });
    },
    idle() {
      return queue.length === 0 && committing === 0
        ? Promise.resolve()
        : new Promise((resolve) => idleWaiters.push(resolve));
    },
    get depth() {
      return queue.length + committing;
    },
  };

  /** After the messages that are already here, so that they share a commit; not after any that are not. */
  function schedule() {
    if (scheduled || committing > 0) return;
    scheduled = true;
    setImmediate(() => {
      scheduled = false;
      void commit();
    });
  }

  async function commit() {
    const batch = queue.take(batchBounds);
    committing = batch.length;
    const started = performance.now();
    try {
      const { outcomes, accounts } = await storage.applyWrites(
        batch.map(({ write }) => write),
        limits,
        now(),
      );
      metrics.committed(batch.length, performance.now() - started);
      onCommit(withOrigins(batch, outcomes, accounts));
      for (const [index, outcome] of outcomes.entries()) {
        const pending = batch[index];
        if (pending === undefined) continue;
        metrics.written(pending.write.kind, outcome.result);
        pending.resolve(outcome);
      }
    } catch (error) {
      for (const pending of batch) pending.reject(error);
    }
    committing = 0;
    if (queue.length > 0) {
      schedule();
      return;
    }
    for (const resolve of idleWaiters.splice(0)) resolve();
  }

  /** [W3] A write that claims to be further ahead than clocks honestly are counts as of the server's now. */
  function bounded(write: Write): Write {
    const latest = now() + config.sync.clockSkewMs;
    if (write.kind === "slot" && write.timestamp !== null && write.timestamp > latest) {
      return { ...write, timestamp: now() };
    }
    if (write.kind === "history_push" && write.createdAt > latest) return { ...write, createdAt: now() };
    return write;
  }
}

/** Changes stand in input order, those that no write asked for last: so do the origins of the applied writes. */
function withOrigins<Origin>(
  batch: Pending<Origin>[],
  outcomes: WriteOutcome[],
  accounts: AccountProgress[],
): Commit<Origin>[] {
  const commits = new Map(
    accounts.map((progress) => [progress.userId, { ...progress, origins: [] as (Origin | undefined)[] }]),
  );
  for (const [index, outcome] of outcomes.entries()) {
    const pending = batch[index];
    if (outcome.result === "applied" && pending !== undefined)
      commits.get(pending.write.author.userId)?.origins.push(pending.origin);
  }
  return [...commits.values()];
}

/** Roughly what a write holds in memory, in bytes. */
function sizeOf(write: Write): number {
  return 256 + ("blob" in write && write.blob !== null ? write.blob.length : 0);
}
