/** What all REST writes share: they go the one way of every write ([W10]), and some outcomes are errors. */
import type { Sessions } from "../accounts/sessions.ts";
import { deadToken, type Identity } from "../accounts/tokens.ts";
import { AppError } from "../errors.ts";
import type { FloodGuards } from "../relay/flood.ts";
import type { Write, WriteOutcome } from "../storage/storage.ts";
import type { Writer } from "../sync/writer.ts";

/** The writer as REST needs it: no socket stands behind these writes. */
export type RestWriter = Pick<Writer<never>, "submit">;

type Written = Exclude<WriteOutcome, { result: "revoked" }>;

/**
 * Counts a request's writes for its device; those of an account's token, which has none, for the account.
 *
 * @throws AppError `rate_limited`: none of them is taken
 */
export function countWrites(
  guards: FloodGuards,
  { deviceId, userId }: Identity,
  writes: readonly { encrypted_blob?: string }[],
): void {
  const bytes = writes.reduce((sum, { encrypted_blob = "" }) => sum + encrypted_blob.length, 0);
  const { waitMs } = guards(deviceId ?? userId).count(bytes, writes.length);
  if (waitMs > 0) throw new AppError("rate_limited", "Too many writes; slow down.", { retryAfterMs: waitMs });
}

/**
 * @returns what became of the write
 * @throws AppError `token_invalid` when the author's token stopped counting on the way
 */
export async function submit(writer: RestWriter, sessions: Sessions, write: Write): Promise<Written> {
  const outcome = await writer.submit(write);
  if (outcome.result !== "revoked") return outcome;
  sessions.forget(write.author.userId);
  throw deadToken();
}

/** What a write gets that no longer fits into the account. */
export function accountFull(): AppError {
  return new AppError("quota_exceeded", "The account's storage is full: remove something first.");
}
