import type { Storage } from "../storage/storage.ts";
import type { Metrics } from "./metrics.ts";

/** The same storage, with every operation timed under its own name. */
export function measuredStorage(storage: Storage, metrics: Pick<Metrics, "queried">): Storage {
  const timed = new Map<PropertyKey, (...args: unknown[]) => unknown>();

  return new Proxy(storage, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      const known = timed.get(name);
      if (known !== undefined) return known;
      const made = time(String(name), (...args) => Reflect.apply(value, target, args));
      timed.set(name, made);
      return made;
    },
  });

  function time(operation: string, call: (...args: unknown[]) => unknown) {
    return (...args: unknown[]): unknown => {
      const started = performance.now();
      const answer = call(...args);
      if (answer instanceof Promise) {
        answer.then(
          () => metrics.queried(operation, performance.now() - started, true),
          () => metrics.queried(operation, performance.now() - started, false),
        );
      }
      return answer;
    };
  }
}
