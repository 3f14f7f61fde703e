/**
 * Text from outside becomes data here, or an AppError that says in plain words which field is wrong and why, and
 * never repeats the value.
 */
import type { z } from "zod";
import { AppError } from "./errors.ts";

/** Nothing that ClipSlot speaks nests deeper than a list of objects; what does is meant to hurt. */
const MAX_DEPTH = 32;
/** Values in one text, counted by what stands before each: the largest batch has a seventh of it. */
const MAX_VALUES = 4_096;

const QUOTE = 0x22;
const COMMA = 0x2c;
const OPENING_BRACKET = 0x5b;
const BACKSLASH = 0x5c;
const CLOSING_BRACKET = 0x5d;
const OPENING_BRACE = 0x7b;
const CLOSING_BRACE = 0x7d;

/**
 * Parses JSON (RFC 8259). Of a name that stands twice in an object the last one counts, as in every JavaScript parser.
 *
 * @throws AppError `invalid_json` for text that is no JSON, nests too deep, or has a `__proto__`
 */
export function parseJson(text: string, name = "The body"): unknown {
  refuseBombs(text, name);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new AppError("invalid_json", `${name} is not valid JSON.`);
  }
  refuseProto(value, name);
  return value;
}

/**
 * Checks a value against a schema.
 *
 * @param name what the value is called when it is not an object with fields
 * @throws AppError `bad_request`, or `payload_too_large` for a blob above the limit
 */
export function validate<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  name = "The body",
): z.output<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = mostTelling(parsed.error.issues);
  if (issue === undefined) throw new AppError("bad_request", `${name} is not well formed.`);
  const tooLarge = issue.code === "custom" && issue.params?.["tooLarge"] === true;
  throw new AppError(
    tooLarge ? "payload_too_large" : "bad_request",
    `${fieldName(issue.path, name)} ${reason(issue)}.`,
  );
}

/** Looks at the brackets and commas outside of strings, before a parser builds what they stand for. */
function refuseBombs(text: string, name: string): void {
  let depth = 0;
  let values = 0;
  for (let index = 0; index < text.length; index += 1) {
    const character = text.charCodeAt(index);
    if (character === QUOTE) {
      index = endOfString(text, index);
    } else if (character === OPENING_BRACE || character === OPENING_BRACKET) {
      depth += 1;
      values += 1;
    } else if (character === CLOSING_BRACE || character === CLOSING_BRACKET) {
      depth -= 1;
    } else if (character === COMMA) {
      values += 1;
    }
    if (depth > MAX_DEPTH) throw new AppError("invalid_json", `${name} nests too deep.`);
    if (values > MAX_VALUES) throw new AppError("invalid_json", `${name} has too many values.`);
  }
}

/** The place of the quotation mark that ends the string which begins at `start`; the text's end when none does. */
function endOfString(text: string, start: number): number {
  let end = text.indexOf('"', start + 1);
  while (end !== -1 && isEscaped(text, end)) end = text.indexOf('"', end + 1);
  return end === -1 ? text.length : end;
}

/** An odd number of backslashes stands before it. */
function isEscaped(text: string, index: number): boolean {
  let backslashes = 0;
  while (text.charCodeAt(index - 1 - backslashes) === BACKSLASH) backslashes += 1;
  return backslashes % 2 === 1;
}

function refuseProto(value: unknown, name: string): void {
  if (typeof value !== "object" || value === null) return;
  if (Object.hasOwn(value, "__proto__")) throw new AppError("invalid_json", `${name} has a field that is not allowed.`);
  for (const part of Object.values(value)) refuseProto(part, name);
}

type Issue = z.core.$ZodIssue;

/** Of a union's branches the one that got furthest: it does not complain about the type of the whole. */
function mostTelling(issues: readonly Issue[]): Issue | undefined {
  const first = issues[0];
  if (first?.code !== "invalid_union") return first;
  const branches = first.errors.map(mostTelling).filter((issue) => issue !== undefined);
  const best = branches.find((issue) => issue.path.length > 0 || issue.code !== "invalid_type") ?? branches[0];
  return best === undefined ? first : { ...best, path: [...first.path, ...best.path] };
}

function fieldName(path: readonly PropertyKey[], name: string): string {
  if (path.length === 0) return name;
  return path
    .map((part) => (typeof part === "number" ? `[${part}]` : String(part)))
    .join(".")
    .replaceAll(".[", "[");
}

/** Our own messages begin with "must" or "may"; zod's are put in the same words. */
function reason(issue: Issue): string {
  if (issue.code === "custom" || /^(must|may) /.test(issue.message)) return issue.message;
  if (issue.code === "too_small") return bound("least", issue.minimum, issue.origin);
  if (issue.code === "too_big") return bound("most", issue.maximum, issue.origin);
  if (issue.code !== "invalid_type") return "is not well formed";
  return issue.message.endsWith("received undefined") ? "is missing" : `must be ${withArticle(issue.expected)}`;
}

function withArticle(type: string): string {
  return `${/^[aeiou]/.test(type) ? "an" : "a"} ${type}`;
}

function bound(side: "least" | "most", limit: number | bigint, origin: string): string {
  const plural = Number(limit) === 1 ? "" : "s";
  if (origin === "string") return `must have at ${side} ${limit} character${plural}`;
  if (origin === "array") return `must have at ${side} ${limit} item${plural}`;
  return `must be at ${side} ${limit}`;
}
