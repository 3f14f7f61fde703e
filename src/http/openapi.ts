/** The API's document: OpenAPI 3.1, made from the very schemas that validate requests and from those of the answers. */
import { z } from "zod";
import { HTTP_STATUS, type ErrorCode } from "../errors.ts";
import type { Protocol } from "../protocol.ts";
import { ANSWERS, SERVER_MESSAGE } from "./answers.ts";
import { operations, type Answer, type Operation } from "./operations.ts";

/** A JSON Schema (2020-12), as OpenAPI 3.1 takes it. */
export type Schema = z.core.JSONSchema.BaseSchema;
/** A part of the document that is itself JSON. */
export type Json = { [name: string]: unknown };

export interface OpenApiDocument {
  openapi: "3.1.0";
  info: Json;
  tags: { name: string; description: string }[];
  paths: Record<string, Record<string, OpenApiOperation>>;
  components: { schemas: Record<string, Schema>; securitySchemes: Json };
}

export interface OpenApiOperation extends Json {
  tags: string[];
  summary: string;
  description?: string;
  security: Json[];
  parameters?: { name: string; in: "path" | "query"; required: boolean; description?: string; schema: Schema }[];
  requestBody?: { required: true; content: Content };
  responses: Record<string, { description: string; headers?: Json; content?: Content }>;
}

type Content = Record<string, { schema: Schema }>;

/** What anybody may run into who sends the like. */
const COMMON_ERRORS: Record<"always" | "token" | "deviceToken" | "input" | "body", ErrorCode[]> = {
  always: ["internal"],
  token: ["token_missing", "token_invalid", "unavailable"],
  deviceToken: ["device_required"],
  input: ["bad_request"],
  body: ["bad_request", "invalid_json", "payload_too_large", "unavailable", "busy"],
};

const TAGS = [
  { name: "Accounts", description: "Registration, login, passwords, link codes." },
  { name: "Devices", description: "Each device has a token of its own and can be cut off alone." },
  { name: "Sync", description: "Slots, history, and the WebSocket that carries changes as they happen." },
  { name: "Server", description: "The server itself. None of these needs a token." },
];

/** OpenAPI 3.1 of every operation, from the schemas that check what comes in. */
export function openApiDocument(protocol: Protocol, version: string): OpenApiDocument {
  const toSchema = schemaMaker(protocol);
  const paths: OpenApiDocument["paths"] = {};
  for (const operation of operations(protocol)) {
    const path = operation.path.replaceAll(/:(\w+)/g, "{$1}");
    paths[path] = { ...paths[path], [operation.method]: describe(operation, toSchema) };
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "ClipSlot sync server",
      version,
      description:
        "Relays encrypted clips between the devices of a person, and keeps them for devices that are away. " +
        "Bodies are JSON both ways; a request's is read as JSON whatever its Content-Type says.",
      license: { name: "MIT", identifier: "MIT" },
    },
    tags: TAGS,
    paths,
    components: {
      schemas: toSchema.components,
      securitySchemes: {
        account: { type: "http", scheme: "bearer", description: "A token of an account or of a device." },
        device: { type: "http", scheme: "bearer", description: "A token of a device." },
      },
    },
  };
}

function describe(operation: Operation, toSchema: SchemaMaker): OpenApiOperation {
  const { tag, summary, description, token, body, params = {}, query } = operation;
  const parameters = [
    ...Object.entries(params).map(([name, schema]) => parameter("path", name, toSchema.output(schema), true)),
    ...Object.entries(query?.shape ?? {}).map(([name, schema]) =>
      parameter("query", name, toSchema.output(schema as z.ZodType), false),
    ),
  ];
  return {
    tags: [tag],
    summary,
    ...(description === undefined ? {} : { description }),
    security: token === undefined ? [] : [{ [token]: [] }],
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(body === undefined
      ? {}
      : {
          requestBody: { required: true as const, content: { "application/json": { schema: toSchema.input(body) } } },
        }),
    responses: {
      ...Object.fromEntries(
        Object.entries(operation.answers).map(([status, answer]) => [status, response(answer, toSchema)]),
      ),
      ...refusals(operation, toSchema),
    },
  };
}

function parameter(place: "path" | "query", name: string, schema: Schema, required: boolean) {
  const { description, ...rest } = schema;
  return { name, in: place, required, ...(description === undefined ? {} : { description }), schema: rest };
}

function response({ description, schema, text, headers }: Answer, toSchema: SchemaMaker) {
  const content: Content | undefined =
    schema !== undefined
      ? { "application/json": { schema: toSchema.output(schema) } }
      : text !== undefined
        ? { [text]: { schema: text === "application/json" ? { type: "object" } : { type: "string" } } }
        : undefined;
  return {
    description,
    ...(headers === undefined
      ? {}
      : { headers: mapValues(headers, (told) => ({ description: told, schema: { type: "string" } })) }),
    ...(content === undefined ? {} : { content }),
  };
}

/** Errors share one shape; which code stands behind a status is said in words. */
function refusals(operation: Operation, toSchema: SchemaMaker): OpenApiOperation["responses"] {
  const { token, body, params, query, errors = [] } = operation;
  const codes = new Set<ErrorCode>([
    ...errors,
    ...(token === undefined ? [] : COMMON_ERRORS.token),
    ...(token === "device" ? COMMON_ERRORS.deviceToken : []),
    ...(body === undefined ? [] : COMMON_ERRORS.body),
    ...(params === undefined && query === undefined ? [] : COMMON_ERRORS.input),
    ...COMMON_ERRORS.always,
  ]);
  const byStatus: Record<string, { description: string; content: Content; headers?: Json }> = {};
  for (const code of codes) {
    const status = String(HTTP_STATUS[code]);
    const other = byStatus[status];
    byStatus[status] = {
      description: other === undefined ? code : `${other.description}, ${code}`,
      content: { "application/json": { schema: toSchema.output(ANSWERS.Error) } },
      ...(status === "429" || status === "503"
        ? { headers: { "Retry-After": { description: "Seconds.", schema: { type: "integer" } } } }
        : {}),
    };
  }
  return byStatus;
}

type SchemaMaker = ReturnType<typeof schemaMaker>;

/** Schemas with a name stand once, in `components`, and everything else refers to them. */
function schemaMaker(protocol: Protocol) {
  const requests = {
    Credentials: protocol.credentials,
    Registration: protocol.registration,
    PasswordChange: protocol.passwordChange,
    AccountDeletion: protocol.accountDeletion,
    LinkCodeRequest: protocol.linkCodeRequest,
    LinkCodeRedemption: protocol.linkCodeRedemption,
    NewDevice: protocol.device,
    SlotPut: protocol.slotPut,
    NewHistoryItem: protocol.historyItem,
    ClientMessage: protocol.clientMessage,
  };
  const answers = { ...ANSWERS, ServerMessage: SERVER_MESSAGE };
  const input = make(requests, "input");
  const output = make(answers, "output");
  return { components: { ...input.components, ...output.components }, input: input.refer, output: output.refer };
}

function make(named: Record<string, z.ZodType>, io: "input" | "output") {
  const names = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(named)) names.add(schema, { id });
  const uri = (id: string) => `#/components/schemas/${id}`;
  const options = { io, uri, override: tidy } as const;
  const { schemas } = z.toJSONSchema(names, options);
  return { components: mapValues(schemas, bare), refer };

  /** A reference to a schema with a name; otherwise the schema itself, with references in it. */
  function refer(schema: z.ZodType): Schema {
    const name = names.get(schema)?.id;
    if (name !== undefined) return { $ref: uri(name) };
    const asked = z.registry<{ id: string }>();
    for (const [id, known] of Object.entries(named)) asked.add(known, { id });
    asked.add(schema, { id: "asked" });
    return bare(z.toJSONSchema(asked, options).schemas["asked"] ?? {});
  }
}

/** In the document a schema is known by its place. */
function bare(schema: Schema): Schema {
  const rest = { ...schema };
  delete rest.$schema;
  delete rest.$id;
  return rest;
}

/** What zod says besides what we mean. */
function tidy({ jsonSchema }: { jsonSchema: Schema }): void {
  // A format says it better than the pattern that checks it, and a pattern can't say "in either case".
  if (jsonSchema.format === "uuid" || jsonSchema.format === "date-time") delete jsonSchema.pattern;
  // A time is a number inside, and text on the wire.
  if (jsonSchema.format === "date-time") {
    jsonSchema.type = "string";
    delete jsonSchema.exclusiveMinimum;
    delete jsonSchema.maximum;
  }
  if (jsonSchema.maximum === Number.MAX_SAFE_INTEGER) delete jsonSchema.maximum;
  // Fields may be added; clients ignore those they don't know.
  delete jsonSchema.additionalProperties;
}

function mapValues<Value, Result>(
  record: Record<string, Value>,
  change: (value: Value) => Result,
): Record<string, Result> {
  return Object.fromEntries(Object.entries(record).map(([name, value]) => [name, change(value)]));
}
