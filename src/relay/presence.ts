/**
 * What devices have confirmed and when they were last seen, kept in memory and written in batches: the hot path pays
 * nothing, and a crash costs a repeated delivery at most ([R2] promises at least once).
 */
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import type { DevicePresence, Storage } from "../storage/storage.ts";

/** Devices written in one statement. */
const BATCH_DEVICES = 500;

export interface Presence {
  /** Notes that the device is there and has everything up to this seq. */
  note(userId: string, deviceId: string, confirmedSeq: number): void;
  /** The seq noted and not written yet; 0 when there is none. */
  unwrittenSeq(deviceId: string): number;
  /** Writes what is noted. Never rejects: what can't be written now is kept for the next time. */
  flush(): Promise<void>;
  /** Flushes at an interval until it is stopped. */
  start(): { stop(): void };
}

export function createPresence(storage: Storage, config: Config, log: Logger): Presence {
  const noted = new Map<string, DevicePresence>();
  let flushing: Promise<void> | undefined;

  const presence: Presence = {
    note(userId, deviceId, confirmedSeq) {
      const older = noted.get(deviceId);
      noted.set(deviceId, {
        userId,
        deviceId,
        lastSeen: Date.now(),
        confirmedSeq: Math.max(confirmedSeq, older?.confirmedSeq ?? 0),
      });
    },
    unwrittenSeq: (deviceId) => noted.get(deviceId)?.confirmedSeq ?? 0,
    flush() {
      flushing ??= write().finally(() => {
        flushing = undefined;
      });
      return flushing;
    },
    start() {
      const timer = setInterval(() => void presence.flush(), config.relay.presenceIntervalMs);
      return { stop: () => clearInterval(timer) };
    },
  };
  return presence;

  async function write(): Promise<void> {
    const entries = [...noted.values()];
    for (let start = 0; start < entries.length; start += BATCH_DEVICES) {
      const batch = entries.slice(start, start + BATCH_DEVICES);
      try {
        await storage.recordPresence(batch);
      } catch (error) {
        log.warn("delivery cursors could not be written; they will be", { error });
        return;
      }
      for (const entry of batch) {
        if (noted.get(entry.deviceId) === entry) noted.delete(entry.deviceId);
      }
    }
  }
}
