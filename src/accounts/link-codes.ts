/**
 * Link codes hand a key from one device of an account to another: one live code an account, five minutes, one use,
 * burnt after five wrong tries. The shipped client uploads its raw master key, so what is stored is sealed with a key
 * the database doesn't hold, and of the code only a keyed digest.
 */
import { createCipheriv, createDecipheriv, createHmac, randomBytes, randomInt } from "node:crypto";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import type { Storage } from "../storage/storage.ts";
import type { ServerKeys } from "./secret.ts";
import { deadToken } from "./tokens.ts";

/** Digits and capitals without those that are taken for one another: 0 and O, 1, I and L. */
const ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ";
/** The shipped client's field takes six. */
const CODE_LENGTH = 6;
/** AES-GCM as NIST SP 800-38D recommends it: a random nonce of 96 bits, a full tag. */
const CIPHER = "aes-256-gcm";
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

export interface LinkCodes {
  /**
   * Keeps the key for a short time; an earlier code of the account no longer works.
   *
   * @throws AppError `token_invalid` when the account is gone
   */
  create(userId: string, encryptedKey: string): Promise<string>;
  /**
   * Takes the key, once.
   *
   * @throws AppError `not_found`, the same whether the code is wrong, used, burnt, past its time or was never there
   */
  redeem(userId: string, code: string): Promise<string>;
}

export interface LinkCodesOptions {
  config: Config;
  storage: Pick<Storage, "putLinkCode" | "takeLinkCode">;
  keys: Pick<ServerKeys, "linkCodes" | "linkKeys">;
}

/** Link codes over one database; a key is sealed with one of the server's before it is stored. */
export function createLinkCodes({ config, storage, keys }: LinkCodesOptions): LinkCodes {
  return {
    async create(userId, encryptedKey) {
      const code = drawCode();
      const kept = await storage.putLinkCode({
        userId,
        codeDigest: digest(userId, code),
        sealedKey: seal(userId, encryptedKey),
        expiresAt: Date.now() + config.auth.linkCodeLifeMs,
      });
      if (!kept) throw deadToken();
      return code;
    },

    async redeem(userId, code) {
      const sealed = await storage.takeLinkCode(
        userId,
        digest(userId, code.trim().toUpperCase()),
        config.auth.linkCodeWrongTries,
        Date.now(),
      );
      const encryptedKey = sealed === null ? null : unseal(userId, sealed);
      if (encryptedKey === null) throw new AppError("not_found", "The code is wrong or no longer valid.");
      return encryptedKey;
    },
  };

  function digest(userId: string, code: string): string {
    return createHmac("sha256", keys.linkCodes).update(`${userId} ${code}`).digest("hex");
  }

  /** The account is bound in: a sealed key that is copied to another account's row opens nothing. */
  function seal(userId: string, encryptedKey: string): string {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv(CIPHER, keys.linkKeys, nonce).setAAD(Buffer.from(userId));
    const text = Buffer.concat([cipher.update(encryptedKey, "utf8"), cipher.final()]);
    return Buffer.concat([nonce, cipher.getAuthTag(), text]).toString("base64");
  }

  /** null: sealed under another server secret. */
  function unseal(userId: string, sealedKey: string): string | null {
    const sealed = Buffer.from(sealedKey, "base64");
    const decipher = createDecipheriv(CIPHER, keys.linkKeys, sealed.subarray(0, NONCE_BYTES), {
      authTagLength: TAG_BYTES,
    });
    decipher.setAAD(Buffer.from(userId)).setAuthTag(sealed.subarray(NONCE_BYTES, NONCE_BYTES + TAG_BYTES));
    try {
      return Buffer.concat([decipher.update(sealed.subarray(NONCE_BYTES + TAG_BYTES)), decipher.final()]).toString(
        "utf8",
      );
    } catch {
      return null;
    }
  }
}

function drawCode(): string {
  return Array.from({ length: CODE_LENGTH }, () => ALPHABET.charAt(randomInt(ALPHABET.length))).join("");
}
