/**
 * Whether a token still counts: its account is there, its password has not changed since, its device is not revoked.
 * The database knows; this keeps what it said for a short time, because every request asks.
 *
 * The trap is a read that began before a revocation and ends after it. What is kept therefore hangs under one object
 * an account, and forgetting throws that object away: a read that comes back late finds itself outside, is kept by
 * nobody, and is done again before anyone is answered by it.
 */
import type { Revocation } from "../bus/bus.ts";
import type { Config } from "../config.ts";
import type { Storage, TokenState } from "../storage/storage.ts";
import { deadToken, type Identity, type Tokens } from "./tokens.ts";

export interface Sessions {
  /**
   * Who a token names, if it counts.
   *
   * @throws AppError `token_invalid`; `unavailable` while the database is away
   */
  authenticate(token: string): Promise<Identity>;
  /**
   * Whether whom we know already still counts, after something that took time: a body may have come slowly, a password
   * takes its time to verify, and what the owner has ended meanwhile must have no effect any more ([R6]).
   *
   * @throws AppError `token_invalid`
   */
  confirm(identity: Identity): Promise<Identity>;
  /** As authenticate, for what lasts, such as a socket: asks the database now, and says what it knows of the device. */
  open(token: string): Promise<{ identity: Identity; state: TokenState }>;
  /** Storage has revoked: from here on none of these tokens counts, and `onRevoked` is told. */
  end(revocation: Revocation): void;
  /** Another instance, or a write, found something revoked: ask the database again. */
  forget(userId: string): void;
  /** Messages of other instances may have been missed. */
  forgetAll(): void;
}

export interface SessionsOptions {
  tokens: Tokens;
  storage: Pick<Storage, "tokenState">;
  config: Config;
  /** Closes the sockets here and tells the other instances. */
  onRevoked: (revocation: Revocation) => void;
}

interface Kept {
  state: Promise<TokenState | null>;
  readAt: number;
}

/** One for the whole process: it holds what the database last said of each token. */
export function createSessions({ tokens, storage, config, onRevoked }: SessionsOptions): Sessions {
  const { tokenStateTtlMs, tokenStateCacheEntries } = config.auth;
  /** By account, then by device ("" for account tokens). */
  const accounts = new Map<string, Map<string, Kept>>();
  let entries = 0;

  return {
    async authenticate(token) {
      const identity = await tokens.verify(token);
      await check(identity);
      return identity;
    },
    async confirm(identity) {
      await check(identity);
      return identity;
    },
    async open(token) {
      const identity = await tokens.verify(token);
      forget(identity.userId);
      return { identity, state: await check(identity) };
    },
    end(revocation) {
      forget(revocation.userId);
      onRevoked(revocation);
    },
    forget,
    forgetAll() {
      accounts.clear();
      entries = 0;
    },
  };

  async function check(identity: Identity): Promise<TokenState> {
    let state = await stateOf(identity);
    if (state !== null && identity.tokenGeneration > state.tokenGeneration) {
      // The password was changed on another instance since this was read.
      forget(identity.userId);
      state = await stateOf(identity);
    }
    if (state === null || state.tokenGeneration !== identity.tokenGeneration) throw deadToken();
    if (identity.deviceId !== null && state.device === null) throw deadToken();
    return state;
  }

  async function stateOf({ userId, deviceId }: Identity): Promise<TokenState | null> {
    for (;;) {
      const account = accountOf(userId);
      const kept = account.get(deviceId ?? "");
      const current =
        kept !== undefined && performance.now() - kept.readAt < tokenStateTtlMs
          ? kept
          : read(account, userId, deviceId);
      const state = await current.state;
      if (accounts.get(userId) === account) return state;
    }
  }

  function read(account: Map<string, Kept>, userId: string, deviceId: string | null): Kept {
    const key = deviceId ?? "";
    const kept = { state: storage.tokenState(userId, deviceId), readAt: performance.now() };
    if (!account.has(key)) entries += 1;
    account.set(key, kept);
    kept.state.catch(() => {
      if (accounts.get(userId) === account && account.get(key) === kept) forget(userId);
    });
    return kept;
  }

  function accountOf(userId: string): Map<string, Kept> {
    let account = accounts.get(userId);
    if (account === undefined) {
      for (const oldest of accounts.keys()) {
        if (entries < tokenStateCacheEntries) break;
        forget(oldest);
      }
      account = new Map();
      accounts.set(userId, account);
    }
    return account;
  }

  function forget(userId: string): void {
    entries -= accounts.get(userId)?.size ?? 0;
    accounts.delete(userId);
  }
}
