/** What all REST writes share: they go the one way of every write ([W10]), and some outcomes are errors. */
import type { Sessions } from "../accounts/sessions.ts";
import { deadToken } from "../accounts/tokens.ts";
import { AppError } from "../errors.ts";
import type { Write, WriteOutcome } from "../storage/storage.ts";
import type { Writer } from "../sync/writer.ts";

/** The writer as REST needs it: no socket stands behind these writes. */
export type RestWriter = Pick<Writer<never>, "submit">;

type Written = Exclude<WriteOutcome, { result: "revoked" }>;

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

export function accountFull(): AppError {
  return new AppError("quota_exceeded", "The account's storage is full: remove something first.");
}
