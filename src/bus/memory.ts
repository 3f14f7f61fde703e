import type { Bus, BusMessage } from "./bus.ts";

/** What connects buses in one process: everyone who listens. */
export type MemoryMedium = Set<(message: BusMessage) => void>;

/**
 * The bus within one process. A server on SQLite is alone on its medium: there is nobody else to tell.
 *
 * @param medium shared by the instances that hear each other
 */
export function memoryBus(medium: MemoryMedium = new Set()): Bus {
  let own: ((message: BusMessage) => void) | undefined;
  return {
    tell(message) {
      for (const hear of medium) {
        if (hear !== own) queueMicrotask(() => medium.has(hear) && hear(message));
      }
    },
    listen(onMessage) {
      own = onMessage;
      medium.add(own);
      return Promise.resolve();
    },
    close() {
      if (own !== undefined) medium.delete(own);
      return Promise.resolve();
    },
  };
}
