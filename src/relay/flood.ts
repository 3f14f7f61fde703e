/**
 * Devices that send too much: what is above the rate is refused, who goes on regardless is cut off, and has to stay
 * away for a while.
 */
import type { Config } from "../config.ts";
import { createMeter, createRecentKeys } from "../rate-limiter.ts";

export interface FloodGuard {
  /**
   * Counts a frame.
   *
   * @returns `waitMs` 0: it may pass; else the milliseconds after which it might. `goesOn`: enough were refused
   */
  count(bytes: number): { waitMs: number; goesOn: boolean };
  /** Milliseconds until the device may come back; 0: it may. */
  awayMs(): number;
}

const PASSES = { waitMs: 0, goesOn: false };
const OPEN: FloodGuard = { count: () => PASSES, awayMs: () => 0 };

/** @returns the guard of a device, which all of its sockets share */
export function createFloodGuards({ rateLimits, limits }: Config): (deviceId: string) => FloodGuard {
  if (!rateLimits) return () => OPEN;
  const guards = createRecentKeys<FloodGuard>(limits.rememberedKeys);
  return (deviceId) => guards.getOr(deviceId, createGuard);

  function createGuard(): FloodGuard {
    const messages = createMeter(limits.messagesPerDevice);
    const refusals = createMeter(limits.refusedMessagesPerDevice);
    let awayUntil = 0;
    return {
      count(bytes) {
        const waitMs = messages(1 + Math.floor(bytes / limits.messageBytes));
        if (waitMs === 0) return PASSES;
        const goesOn = refusals(1) > 0;
        if (goesOn) awayUntil = performance.now() + limits.floodPauseMs;
        return { waitMs: Math.ceil(waitMs), goesOn };
      },
      awayMs: () => Math.max(0, awayUntil - performance.now()),
    };
  }
}
