/**
 * What devices have confirmed and when they were last seen, kept in memory and written in batches: the hot path pays
 * nothing, and a crash costs a repeated delivery at most ([R2] promises at least once).
 */
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import type { DevicePresence, Storage } from "../storage/storage.ts";
import { nextTurn } from "../waiting.ts";

/** Devices written in one statement: on SQLite, less than a millisecond's work (0.6 to 0.8 measured). */
const BATCH_DEVICES = 100;

export interface Presence {
  /** Notes that the device was there just now, and has everything up to this seq. */
  note(userId: string, deviceId: string, confirmedSeq: number): void;
  /** Notes that the device is connected here, for other instances to see. */
  hold(userId: string, deviceId: string): void;
  /** Whether another instance says that the device is connected there. */
  isHeldElsewhere(device: { id: string; connectedUntil: number }): boolean;
  /** The seq noted and not written yet; 0 when there is none. */
  unwrittenSeq(deviceId: string): number;
  /** Writes what is noted. Never rejects: what can't be written now is kept for the next time. */
  flush(): Promise<void>;
}

/** One for the whole process; its owner calls `flush` now and then, and at the end. */
export function createPresence(storage: Storage, config: Config, log: Logger): Presence {
  const noted = new Map<string, DevicePresence>();
  /** What this instance said last of each device, so that it does not take its own word for another's. */
  const leases = new Map<string, number>();
  let flushing: Promise<void> | undefined;

  return {
    note: (userId, deviceId, confirmedSeq) => put(userId, deviceId, confirmedSeq, 0),
    hold(userId, deviceId) {
      // On SQLite there is no other instance to tell.
      const until = storage.dialect === "postgres" ? Date.now() + config.relay.presenceLeaseMs : 0;
      leases.set(deviceId, until);
      put(userId, deviceId, 0, until);
    },
    isHeldElsewhere: ({ id, connectedUntil }) => connectedUntil > Math.max(Date.now(), leases.get(id) ?? 0),
    unwrittenSeq: (deviceId) => noted.get(deviceId)?.confirmedSeq ?? 0,
    flush() {
      flushing ??= write().finally(() => {
        flushing = undefined;
      });
      return flushing;
    },
  };

  function put(userId: string, deviceId: string, confirmedSeq: number, connectedUntil: number): void {
    const older = noted.get(deviceId);
    noted.set(deviceId, {
      userId,
      deviceId,
      lastSeen: Date.now(),
      confirmedSeq: Math.max(confirmedSeq, older?.confirmedSeq ?? 0),
      connectedUntil: Math.max(connectedUntil, older?.connectedUntil ?? 0),
    });
  }

  async function write(): Promise<void> {
    const now = Date.now();
    for (const [deviceId, until] of leases) if (until < now) leases.delete(deviceId);
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
      await nextTurn();
    }
  }
}
