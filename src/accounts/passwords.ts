/**
 * Passwords: argon2id with the parameters OWASP's Password Storage Cheat Sheet names (19 MiB, two passes, one lane),
 * off the event loop in Bun's thread pool. A flood of them would starve that pool, so only as many run at once as
 * leave a core to everybody else, and only so many wait.
 */
import { availableParallelism } from "node:os";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";

const MEMORY_KIB = 19_456;
const PASSES = 2;
const PARAMETERS = { algorithm: "argon2id", memoryCost: MEMORY_KIB, timeCost: PASSES } as const;

export interface Passwords {
  /** @throws AppError `busy` when too many wait */
  hash(password: string): Promise<string>;
  /**
   * @param hash null: there is no such account; the answer is false and takes as long as any other
   * @throws AppError `busy` when too many wait
   */
  verify(password: string, hash: string | null): Promise<boolean>;
}

/** One for the whole process: its turnstile is what keeps a flood of logins off the thread pool. */
export function createPasswords(config: Config): Passwords {
  const inTurn = createTurnstile(
    Math.max(1, availableParallelism() - 1),
    config.auth.passwordQueueLength,
    config.auth.passwordRetryMs,
  );
  const dummy = dummyHash();
  return {
    hash: (password) => inTurn(() => Bun.password.hash(normalise(password), PARAMETERS)),
    verify: (password, hash) =>
      inTurn(async () => {
        const matches = await Bun.password.verify(normalise(password), hash ?? dummy);
        return matches && hash !== null;
      }),
  };
}

/** One keyboard composes an umlaut, another doesn't: the same password on both (RFC 8265 §4.2.2, NFC). */
function normalise(password: string): string {
  return password.normalize("NFC");
}

/** A hash of nothing: verifying against it does the whole work and never matches. */
function dummyHash(): string {
  const part = () =>
    Buffer.from(crypto.getRandomValues(new Uint8Array(32)))
      .toString("base64")
      .replace(/=+$/, "");
  return `$argon2id$v=19$m=${MEMORY_KIB},t=${PASSES},p=1$${part()}$${part()}`;
}

/** Runs at most `places` tasks at once, in order of arrival, with at most `queueLength` waiting. */
function createTurnstile(places: number, queueLength: number, retryAfterMs: number) {
  const waiting: (() => void)[] = [];
  let running = 0;

  return async function inTurn<Result>(task: () => Promise<Result>): Promise<Result> {
    if (running < places) {
      running += 1;
    } else {
      if (waiting.length >= queueLength)
        throw new AppError("busy", "The server is busy; try again in a moment.", { retryAfterMs });
      await new Promise<void>((resolve) => waiting.push(resolve));
    }
    try {
      return await task();
    } finally {
      const next = waiting.shift();
      if (next === undefined) running -= 1;
      else next();
    }
  };
}
