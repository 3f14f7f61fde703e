/**
 * The API's document as one page of HTML: rendered here, without a script and without anything from elsewhere, so that
 * it works in a network of its own, and in a browser that trusts nobody.
 */
import css from "./docs.css" with { type: "text" };
import type { OpenApiDocument, OpenApiOperation, Schema } from "./openapi.ts";

/** The one style sheet the page has, as its Content-Security-Policy names it (CSP Level 3, §2.3.1). */
export const STYLE_HASH = `'sha256-${new Bun.CryptoHasher("sha256").update(css).digest("base64")}'`;

/** @param rules of the WebSocket protocol, in Markdown */
export function docsPage(document: OpenApiDocument, rules: string): string {
  const { schemas } = document.components;
  const sections = document.tags.map(
    (tag) =>
      `<h2 id="${anchor(tag.name)}">${text(tag.name)}</h2><p>${text(tag.description)}</p>${calls(document, tag.name)}`,
  );
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${text(document.info["title"])}</title>
<style>${css}</style>
<h1>${text(document.info["title"])} ${text(document.info["version"])}</h1>
<p>${text(document.info["description"])}</p>
<nav>${document.tags.map(({ name }) => link(name, name)).join("")}${link("websocket", "WebSocket")}${link("protocol", "Protocol")}${link("schemas", "Schemas")}<a href="/api-docs/openapi.json">OpenAPI 3.1</a></nav>
${sections.join("\n")}
<h2 id="websocket">WebSocket</h2>
<p>${link("get-/api/sync/ws", "GET /api/sync/ws")} opens it. Messages are JSON text. A field or a type that a client does not know is to be ignored.</p>
<h3>From the client</h3>${messages(schemas["ClientMessage"], schemas)}
<h3>From the server</h3>${messages(schemas["ServerMessage"], schemas)}
<h2 id="protocol">The protocol</h2>
${Bun.markdown.html(belowTitle(rules), { headings: { ids: true }, noHtmlBlocks: true, noHtmlSpans: true })}
<h2 id="schemas">Schemas</h2>
${Object.entries(schemas)
  .map(([name, schema]) => `<h3 id="${anchor(name)}">${text(name)}</h3>${shape(schema)}`)
  .join("\n")}
</html>
`;
}

function calls(document: OpenApiDocument, tag: string): string {
  return Object.entries(document.paths)
    .flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => ({ path, method, operation })))
    .filter(({ operation }) => operation.tags.includes(tag))
    .map(({ path, method, operation }) => call(path, method, operation))
    .join("\n");
}

function call(path: string, method: string, operation: OpenApiOperation): string {
  const [token] = operation.security.flatMap((need) => Object.keys(need));
  const needs =
    token === undefined
      ? "No token."
      : token === "device"
        ? "A device's token."
        : "A token of the account or of a device.";
  const parameters = (operation.parameters ?? []).map(({ name, in: place, description, schema }) => [
    `<code>${text(name)}</code> <span class="dim">${place}</span>`,
    type(schema),
    text(description ?? ""),
  ]);
  const body = operation.requestBody?.content["application/json"]?.schema;
  const answers = Object.entries(operation.responses).map(([status, { description, content, headers }]) => [
    `<code>${status}</code>`,
    type(Object.values(content ?? {})[0]?.schema),
    text([description, ...Object.keys(headers ?? {}).map((name) => `with ${name}`)].join(", ")),
  ]);
  return `<details id="${anchor(`${method}-${path}`)}"><summary><b>${method.toUpperCase()}</b> <code>${text(path)}</code> ${text(operation.summary)}</summary>
<p>${text(operation.description ?? "")} <span class="dim">${needs}</span></p>
${parameters.length === 0 ? "" : table(["Parameter", "Type", ""], parameters)}
${body === undefined ? "" : `<p>Body: ${type(body)}</p>`}
${table(["Answer", "Body", ""], answers)}</details>`;
}

/** The variants of a union of messages, each under its type. */
function messages(union: Schema | undefined, schemas: Record<string, Schema>): string {
  return variantsOf(union)
    .map((variant) => schemas[nameOf(variant)] ?? variant)
    .map(
      (variant) =>
        `<details><summary><b>${text(constantOf(variant.properties?.["type"]))}</b></summary>${shape(variant)}</details>`,
    )
    .join("\n");
}

/** What a schema is made of: its fields, or the variants it may be. */
function shape(schema: Schema): string {
  if (schema.properties === undefined) return `<p>${type(schema)}</p>`;
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties).map(([name, field]) => [
    `<code>${text(name)}</code>${required.has(name) ? "" : ' <span class="dim">optional</span>'}`,
    type(asSchema(field)),
    text(asSchema(field).description ?? ""),
  ]);
  return table(["Field", "Type", ""], rows);
}

/** A type in a few words. */
function type(schema: Schema | undefined): string {
  if (schema === undefined) return "";
  const name = nameOf(schema);
  if (name !== "") return link(name, name);
  if (schema.const !== undefined) return `<code>${text(JSON.stringify(schema.const))}</code>`;
  if (schema.enum !== undefined) return schema.enum.map((value) => `<code>${text(value)}</code>`).join(" ");
  if (schema.type === "array") return `list of ${type(asSchema(schema.items))}`;
  const variants = variantsOf(schema);
  if (variants.length > 0) return variants.map(type).join(" or ");
  if (schema.properties !== undefined) return shape(schema);
  return text([schema.type ?? "anything", schema.format, bounds(schema)].filter(Boolean).join(", "));
}

function bounds(schema: Schema): string {
  const { minimum, exclusiveMinimum, maximum, minLength, maxLength, default: fallback } = schema;
  return [
    minimum === undefined ? "" : `from ${minimum}`,
    exclusiveMinimum === undefined ? "" : `above ${exclusiveMinimum}`,
    maximum === undefined ? "" : `up to ${maximum}`,
    minLength === undefined ? "" : `at least ${minLength} characters`,
    maxLength === undefined ? "" : `at most ${maxLength} characters`,
    fallback === undefined ? "" : `default ${JSON.stringify(fallback)}`,
  ]
    .filter((bound) => bound !== "")
    .join(", ");
}

function table(heads: string[], rows: string[][]): string {
  const line = (tag: string, cells: string[]) => `<tr>${cells.map((cell) => `<${tag}>${cell}</${tag}>`).join("")}</tr>`;
  return `<table>${line("th", heads)}${rows.map((row) => line("td", row)).join("")}</table>`;
}

function variantsOf(schema: Schema | undefined): Schema[] {
  return (schema?.oneOf ?? schema?.anyOf ?? []).map(asSchema);
}

/** JSON Schema allows true and false in place of a schema. */
function asSchema(schema: unknown): Schema {
  return typeof schema === "object" && schema !== null && !Array.isArray(schema) ? (schema as Schema) : {};
}

function constantOf(schema: unknown): string {
  return String(asSchema(schema).const ?? "");
}

/** The name of the schema that is referred to; empty when none is. */
function nameOf(schema: Schema): string {
  return schema.$ref?.split("/").at(-1) ?? "";
}

function link(to: string, label: string): string {
  return `<a href="#${anchor(to)}">${text(label)}</a>`;
}

function anchor(name: string): string {
  return name.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-");
}

/** The page has a title of its own, and this stands below one of its headings. */
function belowTitle(markdown: string): string {
  return markdown.replace(/^# .*\n/, "").replaceAll(/^##/gm, "###");
}

function text(value: unknown): string {
  return Bun.escapeHTML(String(value));
}
