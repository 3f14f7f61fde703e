/**
 * How long to wait before the next try: longer each time, up to a bound, and drawn at random from the whole span, so
 * that a thousand clients of a server that restarts do not come back in the same moment.
 */
export interface Backoff {
  /** Milliseconds to wait before the next try. */
  next(): number;
  /** It worked: the next failure starts from the beginning. */
  reset(): void;
}

export function createBackoff({ firstMs = 500, maxMs = 30_000, random = Math.random } = {}): Backoff {
  let failures = 0;
  return {
    next() {
      const span = Math.min(maxMs, firstMs * 2 ** failures);
      failures += 1;
      return span * random();
    },
    reset() {
      failures = 0;
    },
  };
}
