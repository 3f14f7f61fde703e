/** Invites: a random token that lets one person register. It is shown once; the database keeps only its digest. */
import { createHash, randomBytes } from "node:crypto";

/** 128 random bits: nobody guesses one, so the digest needs no salt and no slow hash. */
const TOKEN_BYTES = 16;

/** Draws an invite. */
export function createInviteToken(): { token: string; digest: string } {
  const token = randomBytes(TOKEN_BYTES).toString("base64url");
  return { token, digest: inviteDigest(token) };
}

/** What the database knows an invite by: the SHA-256 of its token, in lower-case hex. */
export function inviteDigest(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}
