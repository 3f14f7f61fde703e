/**
 * PostgreSQL's text forms of arrays and records (manual, "Array Input and Output Syntax", "Composite Type Input and
 * Output Syntax"). postgres.js can't write an array of records, and asks each new connection for the types of arrays.
 */

/** An array of ids, numbers or other texts without NULL. */
export function arrayLiteral(elements: readonly string[]): string {
  return `{${elements.map((element) => `"${escape(element)}"`).join(",")}}`;
}

export type Field = string | number | boolean | null;

/** A record; null is NULL. */
export function recordLiteral(fields: readonly Field[]): string {
  return `(${fields.map(fieldLiteral).join(",")})`;
}

function fieldLiteral(field: Field): string {
  if (field === null) return "";
  if (typeof field !== "string") return String(field);
  return /^[\w+/=:.-]+$/.test(field) ? field : `"${escape(field)}"`;
}

function escape(text: string): string {
  return text.replace(/["\\]/g, "\\$&");
}
