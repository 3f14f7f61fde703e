/** Sockets that send too much: what is above the rate is refused, and who goes on regardless is cut off. */
import type { Config } from "../config.ts";
import { createMeter } from "../rate-limiter.ts";

export interface FloodGuard {
  /**
   * Counts a frame.
   *
   * @returns `waitMs` 0: it may pass; else the milliseconds after which it might. `goesOn`: enough were refused
   */
  count(bytes: number): { waitMs: number; goesOn: boolean };
}

const PASSES = { waitMs: 0, goesOn: false };
const OPEN: FloodGuard = { count: () => PASSES };

/** One for each socket. */
export function createFloodGuard({ rateLimits, limits }: Config): FloodGuard {
  if (!rateLimits) return OPEN;
  const messages = createMeter(limits.messagesPerSocket);
  const refusals = createMeter(limits.refusedMessagesPerSocket);
  return {
    count(bytes) {
      const waitMs = messages(1 + Math.floor(bytes / limits.messageBytes));
      return waitMs === 0 ? PASSES : { waitMs: Math.ceil(waitMs), goesOn: refusals(1) > 0 };
    },
  };
}
