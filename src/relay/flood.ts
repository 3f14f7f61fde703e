/**
 * Devices that send too much: what is above the rate is refused, who goes on regardless is cut off, and has to stay
 * away for a while.
 */
import type { Config } from "../config.ts";
import { createMeter, createRecentKeys } from "../rate-limiter.ts";

export interface FloodGuard {
  /**
   * Counts a frame, or a request of so many writes.
   *
   * @returns `waitMs` 0: it may pass; else the milliseconds after which it might. `goesOn`: enough were refused
   */
  count(bytes: number, messages?: number): { waitMs: number; goesOn: boolean };
  /** Milliseconds until the device may come back; 0: it may. */
  awayMs(): number;
}

const PASSES = { waitMs: 0, goesOn: false };
const OPEN: FloodGuard = { count: () => PASSES, awayMs: () => 0 };

export type FloodGuards = (id: string) => FloodGuard;

/** @returns the guard of a device, which all of its sockets and requests share; of an account for what has no device */
export function createFloodGuards({ rateLimits, limits }: Config): FloodGuards {
  if (!rateLimits) return () => OPEN;
  const guards = createRecentKeys<FloodGuard>(limits.rememberedKeys);
  return (id) => guards.getOr(id, createGuard);

  function createGuard(): FloodGuard {
    const meter = createMeter(limits.messagesPerDevice);
    const refusals = createMeter(limits.refusedMessagesPerDevice);
    let awayUntil = 0;
    return {
      count(bytes, messages = 1) {
        const waitMs = meter(messages + Math.floor(bytes / limits.messageBytes));
        if (waitMs === 0) return PASSES;
        const goesOn = refusals(1) > 0;
        if (goesOn) awayUntil = performance.now() + limits.floodPauseMs;
        return { waitMs: Math.ceil(waitMs), goesOn };
      },
      awayMs: () => Math.max(0, awayUntil - performance.now()),
    };
  }
}
