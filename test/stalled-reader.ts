/** A client over plain TCP who takes the first bytes of an answer and then waits: leaves, or reads on. */
import { createConnection } from "node:net";
import { within } from "./harness.ts";

/** Resolves when the first bytes of the answer have come. */
export async function readNoFurther(server: { url: string }, token: string, path: string) {
  const { hostname, port } = new URL(server.url);
  const socket = createConnection({ host: hostname, port: Number(port) });
  const received: Buffer[] = [];
  const begun = Promise.withResolvers<void>();
  const ended = new Promise<void>((resolve) => socket.on("close", () => resolve()));
  socket.on("error", () => {});
  socket.on("data", (bytes: Buffer) => {
    received.push(bytes);
    begun.resolve();
  });
  socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nConnection: close\r\n\r\n`);
  await within(begun.promise, "the answer to begin");
  socket.pause();
  return {
    leave: () => socket.destroy(),
    /** Reads on to the end, however it comes. */
    async finish() {
      socket.resume();
      await within(ended, "the answer to end", 30_000);
      return parseChunked(Buffer.concat(received));
    },
  };
}

/** RFC 9112 §7.1: an answer is whole when its last chunk, which is empty, has come. */
function parseChunked(answer: Buffer): { head: string; chunks: string; isWhole: boolean } {
  const bodyAt = answer.indexOf("\r\n\r\n") + 4;
  const head = answer.toString("latin1", 0, bodyAt);
  const chunks: Buffer[] = [];
  for (let at = bodyAt; ;) {
    const dataAt = answer.indexOf("\r\n", at) + 2;
    const length = Number.parseInt(answer.toString("latin1", at, dataAt), 16);
    if (dataAt < 2 || !(dataAt + length < answer.length)) return { head, chunks: "", isWhole: false };
    if (length === 0) return { head, chunks: Buffer.concat(chunks).toString(), isWhole: true };
    chunks.push(answer.subarray(dataAt, dataAt + length));
    at = dataAt + length + 2;
  }
}
