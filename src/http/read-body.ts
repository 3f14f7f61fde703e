/**
 * Request bodies. They are JSON whatever the Content-Type says (`curl -d` sends a form's), and their size
 * is bounded before a byte of them is kept.
 */
import type { z } from "zod";
import { AppError } from "../errors.ts";
import { parseJson, validate } from "../validate.ts";

const utf8 = new TextDecoder("utf-8", { fatal: true });

/**
 * Reads, bounds, decodes, parses and validates a body.
 *
 * @throws AppError `payload_too_large`, `invalid_json` or `bad_request`
 */
export async function readBody<Schema extends z.ZodType>(
  request: Request,
  schema: Schema,
  maxBytes: number,
): Promise<z.output<Schema>> {
  return validate(schema, await readJson(request, maxBytes));
}

/** As readBody, for a caller that chooses the schema by what has come. */
export async function readJson(request: Request, maxBytes: number): Promise<unknown> {
  const bytes = await readBytes(request, maxBytes);
  let text: string;
  try {
    text = utf8.decode(bytes);
  } catch {
    throw new AppError("invalid_json", "The body is not valid UTF-8.");
  }
  return parseJson(text);
}

/** A declared length is checked and held to by Bun; a body without one is counted as it comes. */
async function readBytes(request: Request, maxBytes: number): Promise<Uint8Array> {
  const declared = request.headers.get("Content-Length");
  if (declared !== null && Number(declared) > maxBytes) throw tooLarge(maxBytes);
  try {
    return declared === null ? await readStream(request.body, maxBytes) : await request.bytes();
  } catch (error) {
    if (error instanceof AppError) throw error;
    throw new AppError("bad_request", "The body ended too early.", { cause: error });
  }
}

async function readStream(body: ReadableStream<Uint8Array> | null, maxBytes: number): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of body ?? []) {
    size += chunk.length;
    if (size > maxBytes) throw tooLarge(maxBytes);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, size);
}

function tooLarge(maxBytes: number): AppError {
  return new AppError("payload_too_large", `The body is larger than ${maxBytes} bytes.`);
}
