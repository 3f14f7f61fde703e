/** Answers that are too large for memory: written while they are read, and only as fast as the client takes them. */
import type { Logger } from "../log.ts";
import type { AppContext } from "./context.ts";

/**
 * Answers 200 with this JSON text, piece by piece; the next one is asked for only when the last one was taken.
 *
 * The status is out by then, so a fault on the way breaks the connection off: nobody takes half a text for a whole one.
 * It is logged here and nowhere else.
 */
export function streamJson(c: AppContext, log: Logger, pieces: AsyncGenerator<string>): Response {
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const piece = await pieces.next().catch((error: unknown) => {
          log.error("an answer broke off", {
            error,
            request_id: c.var.requestId,
            method: c.req.method,
            path: c.req.path,
          });
          throw error;
        });
        if (piece.done === true) controller.close();
        else controller.enqueue(encoder.encode(piece.value));
      },
      async cancel() {
        await pieces.return(undefined);
      },
    },
    // Nothing is read ahead, and for a HEAD nothing at all.
    { highWaterMark: 0 },
  );
  c.header("Content-Type", "application/json");
  return c.body(body);
}
