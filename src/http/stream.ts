/** Answers that are too large for memory: written while they are read, and only as fast as the client takes them. */
import type { Logger } from "../log.ts";
import type { AppContext } from "./context.ts";
import type { RateLimits } from "./rate-limits.ts";

export interface StreamDependencies {
  log: Logger;
  limits: Pick<RateLimits, "stream">;
}

/**
 * Answers 200 with this JSON text, piece by piece; the next one is asked for only when the last one was taken.
 *
 * The status is out by then, so a fault on the way breaks the connection off: nobody takes half a text for a whole one.
 * It is logged here and nowhere else.
 *
 * @throws AppError `rate_limited` when the account is being sent enough of these already
 */
export function streamJson(
  c: AppContext,
  { log, limits }: StreamDependencies,
  pieces: AsyncGenerator<string>,
  headers: Record<string, string> = {},
): Response {
  const { signal } = c.req.raw;
  // A HEAD is answered without the body, which nobody then reads or cancels.
  const release = c.req.method === "HEAD" ? () => {} : limits.stream(c.var.identity.userId);
  // A client that left before the first piece cancels nothing.
  if (signal.aborted) release();
  else signal.addEventListener("abort", release, { once: true });
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const piece = await pieces.next().catch((error: unknown) => {
          release();
          log.error("an answer broke off", {
            error,
            request_id: c.var.requestId,
            method: c.req.method,
            path: c.req.path,
          });
          throw error;
        });
        if (piece.done !== true) return controller.enqueue(encoder.encode(piece.value));
        release();
        controller.close();
      },
      async cancel() {
        release();
        await pieces.return(undefined);
      },
    },
    // Nothing is read ahead, and for a HEAD nothing at all.
    { highWaterMark: 0 },
  );
  return c.body(body, 200, { "Content-Type": "application/json", ...headers });
}

/** The text of an array, an element a piece. */
export async function* jsonArray(elements: AsyncIterable<object>): AsyncGenerator<string> {
  let before = "[";
  for await (const element of elements) {
    yield `${before}\n${JSON.stringify(element)}`;
    before = ",";
  }
  yield before === "[" ? "[]" : "\n]";
}
