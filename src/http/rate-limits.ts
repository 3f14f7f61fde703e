/**
 * What strangers, and accounts, may ask for how often. Only what costs much or guesses is limited: who is signed in
 * reads and writes on, whatever happens to logins ([config] `limits` has the numbers). Writes have a rate of their own,
 * the same over REST and sockets: see relay/flood.ts.
 */
import { normaliseEmail } from "../accounts/accounts.ts";
import type { Config } from "../config.ts";
import { AppError, type ErrorCode } from "../errors.ts";
import { createFailureLimiter, createRateLimiter, createRecentKeys, type FailureLimiter } from "../rate-limiter.ts";

/** What a wrong password is answered with: a guess. Anything else that goes wrong is none. */
const WRONG_GUESS: ReadonlySet<ErrorCode> = new Set(["login_failed", "wrong_password"]);

/** Each throws AppError `rate_limited` with the time to wait. */
export interface RateLimits {
  registration(address: string): void;
  /** Runs a login. Guesses at one account and from one address are slowed down more and more. */
  login<Result>(address: string, email: string, attempt: () => Promise<Result>): Promise<Result>;
  /** Runs what a signed-in caller has to confirm with the password. */
  confirmation<Result>(userId: string, attempt: () => Promise<Result>): Promise<Result>;
  deviceRegistration(userId: string): void;
  linkCode(userId: string): void;
  export(userId: string): void;
  /** Takes one of the account's places for answers that are written while they are read. @returns what gives it back */
  stream(userId: string): () => void;
}

/** With RATE_LIMITS=off each of them lets everything pass. */
export function createRateLimits({ rateLimits, limits }: Config): RateLimits {
  return rateLimits ? limited(limits) : UNLIMITED;
}

const UNLIMITED: RateLimits = {
  registration: () => {},
  login: (_address, _email, attempt) => attempt(),
  confirmation: (_userId, attempt) => attempt(),
  deviceRegistration: () => {},
  linkCode: () => {},
  export: () => {},
  stream: () => () => {},
};

function limited(limits: Config["limits"]): RateLimits {
  const { rememberedKeys } = limits;
  const perAccount = createFailureLimiter(limits.wrongPasswordsPerAccount, rememberedKeys);
  const perAddress = createFailureLimiter(limits.wrongPasswordsPerAddress, rememberedKeys);
  const confirmations = createFailureLimiter(limits.wrongPasswordsPerAccount, rememberedKeys);
  const logins = refusing(createRateLimiter(limits.loginsPerAddress, rememberedKeys));
  /** From where an account has been logged in to: guesses from elsewhere don't lock its owner out. */
  const familiar = createRecentKeys<true>(rememberedKeys);

  return {
    registration: refusing(createRateLimiter(limits.registrationsPerAddress, rememberedKeys)),

    async login(address, email, attempt) {
      logins(address);
      const account = normaliseEmail(email);
      const home = `${account} ${address}`;
      const tries = [
        { limiter: perAccount, key: familiar.has(home) ? home : account },
        { limiter: perAddress, key: address },
      ];
      const result = await guess(tries, attempt);
      perAccount.forgive(account);
      perAccount.forgive(home);
      perAddress.takeBack(address);
      familiar.getOr(home, () => true);
      return result;
    },

    async confirmation(userId, attempt) {
      const result = await guess([{ limiter: confirmations, key: userId }], attempt);
      confirmations.forgive(userId);
      return result;
    },

    deviceRegistration: refusing(createRateLimiter(limits.deviceRegistrationsPerAccount, rememberedKeys)),
    linkCode: refusing(createRateLimiter(limits.linkCodesPerAccount, rememberedKeys)),
    export: refusing(createRateLimiter(limits.exportsPerAccount, rememberedKeys)),
    stream: createPlaces(limits.streamsPerAccount, limits.streamsRetryMs),
  };
}

/** Each try counts as failed from its beginning; one that failed for another reason than its password is taken back. */
async function guess<Result>(
  tries: readonly { limiter: FailureLimiter; key: string }[],
  attempt: () => Promise<Result>,
): Promise<Result> {
  refuse(Math.max(...tries.map(({ limiter, key }) => limiter.waitMs(key))));
  for (const { limiter, key } of tries) limiter.begin(key);
  try {
    return await attempt();
  } catch (error) {
    const isGuess = error instanceof AppError && WRONG_GUESS.has(error.code);
    if (!isGuess) for (const { limiter, key } of tries) limiter.takeBack(key);
    throw error;
  }
}

/** So many at once for a key. What is taken is given back, so only keys in use are remembered. */
function createPlaces(perKey: number, retryMs: number): (key: string) => () => void {
  const taken = new Map<string, number>();
  return (key) => {
    const count = taken.get(key) ?? 0;
    if (count >= perKey) refuse(retryMs);
    taken.set(key, count + 1);
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      const left = (taken.get(key) ?? 0) - 1;
      if (left > 0) taken.set(key, left);
      else taken.delete(key);
    };
  };
}

function refusing(waitMs: (key: string) => number): (key: string) => void {
  return (key) => refuse(waitMs(key));
}

function refuse(waitMs: number): void {
  if (waitMs > 0)
    throw new AppError("rate_limited", "Too many tries; try again later.", { retryAfterMs: Math.ceil(waitMs) });
}
