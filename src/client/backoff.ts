/**
 * How long to wait before the next try: longer each time, up to a bound, and drawn at random from the whole span, so
 * that a thousand clients of a server that restarts do not come back in the same moment.
 */
export interface Backoff {
  /**
   * Milliseconds to wait before the next try.
   *
   * @param heldMs how long the last try held. One that held for long did work, and the pauses start from the beginning;
   * one that broke soon may have broken on what it was used for, which would break the next one as well
   */
  next(heldMs?: number): number;
}

/** @param random from 0 up to 1, as Math.random gives it */
export function createBackoff({ firstMs = 500, maxMs = 30_000, steadyMs = 5_000, random = Math.random } = {}): Backoff {
  let failures = 0;
  return {
    next(heldMs = 0) {
      if (heldMs >= steadyMs) failures = 0;
      const span = Math.min(maxMs, firstMs * 2 ** failures);
      failures += 1;
      return span * random();
    },
  };
}
