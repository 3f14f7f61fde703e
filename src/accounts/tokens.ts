/**
 * Tokens: JWT (RFC 7519), HS256 and nothing else. A device token names account and device, an account token the
 * account alone. A token says who it was issued to; whether it still counts is asked of sessions.ts.
 */
import { SignJWT, jwtVerify } from "jose";
import { z } from "zod";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import { uuid } from "../protocol.ts";
import type { Author } from "../storage/storage.ts";

const ISSUER = "clipslot";
const AUDIENCE = "clipslot-sync";
const ALGORITHM = "HS256";
/** Ours have under 500 characters. */
const TOKEN_MAX_LENGTH = 2_048;

const claims = z
  .object({
    sub: uuid,
    exp: z.int(),
    iat: z.int(),
    jti: uuid,
    gen: z.int().nonnegative(),
  })
  .and(
    z.discriminatedUnion("kind", [
      z.object({ kind: z.literal("account") }),
      z.object({ kind: z.literal("device"), dev: uuid }),
    ]),
  );

/** Who a token names, and until when. It is an Author: writes carry it as it is. */
export interface Identity extends Author {
  /** Milliseconds since 1970. */
  expiresAt: number;
}

export interface Tokens {
  /** Signs a token for a device, or (deviceId null) for the account. */
  issue(author: Author): Promise<string>;
  /**
   * Who a token names, if this server signed it and its time has not passed.
   *
   * @throws AppError `token_invalid`
   */
  verify(token: string): Promise<Identity>;
  /** When a device token issued now ends, in milliseconds since 1970. */
  deviceTokenEnd(now: number): number;
}

/** The answer to every token that doesn't count, whatever the reason; the shipped client logs out at "expired" ([E1]). */
export function deadToken(): AppError {
  return new AppError("token_invalid", "The token is invalid or has expired.");
}

/**
 * @param key HMAC-SHA-256, for signing and verifying
 */
export function createTokens(key: CryptoKey, config: Config): Tokens {
  const { accountTokenSeconds, deviceTokenSeconds, tokenStateCacheEntries } = config.auth;
  // A signature costs 70 µs to verify, more than all else a read does, and never changes: remember the good ones.
  const verified = new Map<string, Identity>();

  return {
    async issue({ userId, deviceId, tokenGeneration }) {
      const now = Math.floor(Date.now() / 1000);
      const kind = deviceId === null ? { kind: "account" } : { kind: "device", dev: deviceId };
      return new SignJWT({ ...kind, gen: tokenGeneration })
        .setProtectedHeader({ alg: ALGORITHM, typ: "JWT" })
        .setIssuer(ISSUER)
        .setAudience(AUDIENCE)
        .setSubject(userId)
        .setJti(crypto.randomUUID())
        .setIssuedAt(now)
        .setExpirationTime(now + (deviceId === null ? accountTokenSeconds : deviceTokenSeconds))
        .sign(key);
    },

    async verify(token) {
      const identity = verified.get(token) ?? (await verifySignature(token));
      if (identity.expiresAt <= Date.now()) {
        verified.delete(token);
        throw deadToken();
      }
      return identity;
    },

    deviceTokenEnd: (now) => now + deviceTokenSeconds * 1000,
  };

  async function verifySignature(token: string): Promise<Identity> {
    if (token.length > TOKEN_MAX_LENGTH) throw deadToken();
    const identity = await readClaims(token, key);
    if (verified.size >= tokenStateCacheEntries) {
      for (const oldest of verified.keys()) {
        verified.delete(oldest);
        break;
      }
    }
    verified.set(token, identity);
    return identity;
  }
}

async function readClaims(token: string, key: CryptoKey): Promise<Identity> {
  const { payload } = await jwtVerify(token, key, {
    algorithms: [ALGORITHM],
    issuer: ISSUER,
    audience: AUDIENCE,
    typ: "JWT",
  }).catch(() => {
    throw deadToken();
  });
  const parsed = claims.safeParse(payload);
  if (!parsed.success) throw deadToken();
  const { sub, gen, exp } = parsed.data;
  return {
    userId: sub,
    deviceId: parsed.data.kind === "device" ? parsed.data.dev : null,
    tokenGeneration: gen,
    expiresAt: exp * 1000,
  };
}
