/**
 * What every limit is made of. Memory is bounded: each limiter remembers a fixed number of keys, and the one that was
 * quiet for longest is forgotten first. (rate-limiter-flexible keeps a record and a timer for every key it ever sees in
 * a window, in fixed windows; this is smaller than what it would take to bound it.)
 */

/** `burst` at once, then one every `everyMs`. */
export interface Rate {
  burst: number;
  everyMs: number;
}

/** The first `free` failures cost nothing; each one after them doubles the wait, from `firstWaitMs` to `maxWaitMs`. */
export interface Backoff {
  free: number;
  firstWaitMs: number;
  maxWaitMs: number;
  /** Failures are forgotten this long after the last one. */
  forgetAfterMs: number;
}

/** What sums of fractions of a millisecond may be off by. */
const ROUNDING_MS = 0.001;

/** Counts one thing, such as a socket's messages. Takes `cost`, or takes nothing and says in how many milliseconds it would. */
export type Meter = (cost: number, now?: number) => number;

/**
 * The generic cell rate algorithm (ITU-T I.371, annex A), a token bucket in one number: the time at which all that was
 * taken will have been earned again.
 */
export function createMeter({ burst, everyMs }: Rate): Meter {
  let earnedAt = 0;
  return (cost, now = performance.now()) => {
    const owed = Math.max(0, earnedAt - now);
    const wait = owed + (cost - burst) * everyMs;
    if (wait > ROUNDING_MS) return wait;
    earnedAt = now + owed + cost * everyMs;
    return 0;
  };
}

/** A meter a key. */
export function createRateLimiter(rate: Rate, maxKeys: number): (key: string) => number {
  const meters = createRecentKeys<Meter>(maxKeys);
  return (key) => meters.getOr(key, () => createMeter(rate))(1);
}

export interface FailureLimiter {
  /** Milliseconds until the key may try again; 0: now. */
  waitMs(key: string): number;
  /** Counts a try as failed, before anyone knows: tries that run side by side count each other. */
  begin(key: string): void;
  /** The try was none: it is not counted. */
  takeBack(key: string): void;
  /** The try proved who it is: all is forgiven. */
  forgive(key: string): void;
}

/** @param maxKeys remembered at once; one more, and the one that was quiet for longest is forgotten */
export function createFailureLimiter(backoff: Backoff, maxKeys: number): FailureLimiter {
  const { free, firstWaitMs, maxWaitMs, forgetAfterMs } = backoff;
  const records = createRecentKeys<{ failures: number; lastAt: number }>(maxKeys);

  return {
    waitMs(key) {
      const record = records.get(key);
      if (record === undefined || record.failures <= free) return 0;
      const wait = Math.min(maxWaitMs, firstWaitMs * 2 ** (record.failures - free - 1));
      return Math.max(0, record.lastAt + wait - performance.now());
    },
    begin(key) {
      const now = performance.now();
      const record = records.getOr(key, () => ({ failures: 0, lastAt: now }));
      record.failures = now - record.lastAt > forgetAfterMs ? 1 : record.failures + 1;
      record.lastAt = now;
    },
    takeBack(key) {
      const record = records.get(key);
      if (record !== undefined) record.failures = Math.max(0, record.failures - 1);
    },
    forgive: (key) => records.delete(key),
  };
}

/** A map that forgets the key that was asked for longest ago. */
export function createRecentKeys<Value>(maxKeys: number) {
  const values = new Map<string, Value>();
  const touch = (key: string, value: Value): Value => {
    values.delete(key);
    values.set(key, value);
    for (const oldest of values.keys()) {
      if (values.size <= maxKeys) break;
      values.delete(oldest);
    }
    return value;
  };
  return {
    get(key: string): Value | undefined {
      const value = values.get(key);
      return value === undefined ? undefined : touch(key, value);
    },
    getOr: (key: string, create: () => Value): Value => touch(key, values.get(key) ?? create()),
    has: (key: string): boolean => values.has(key),
    delete(key: string): void {
      values.delete(key);
    },
    get size() {
      return values.size;
    },
  };
}
