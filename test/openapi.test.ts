/**
 * The API's document: it names every route, it is valid OpenAPI 3.1, and what the server really takes and answers is
 * what it says. Real answers are held against the published document by a validator of JSON Schema, not by zod.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { Validator } from "@seriousme/openapi-schema-validator";
import Ajv2020 from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import { loadConfig } from "../src/config.ts";
import { createApp } from "../src/http/app.ts";
import { createProtocol } from "../src/protocol.ts";
import {
  createAccount,
  createDevice,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  type TestServer,
} from "./harness.ts";

let server: TestServer;
let api: any;
let validate: (schema: object, value: unknown) => void;
/** "get /path 200" of every answer that was held against the document. */
const seen = new Set<string>();

beforeAll(async () => {
  server = await startTestServer();
  api = await server.json("GET", "/api-docs/openapi.json");
  validate = strictValidator(api);
});
afterAll(() => server.stop());

test("the document is valid OpenAPI 3.1", async () => {
  const validator = new Validator();
  const result = await validator.validate(structuredClone(api));
  expect(result).toEqual({ valid: true });
  expect(validator.version).toBe("3.1");
});

test("every route is in the document, and nothing else", () => {
  const config = loadConfig({});
  const unused = {} as any;
  const app = createApp({ ...unused, config, protocol: createProtocol(config), version: "0" });
  const routes = app.routes
    .filter(({ method, path }) => method !== "ALL" && !path.includes("*"))
    .map(({ method, path }) => `${method.toLowerCase()} ${path.replaceAll(/:(\w+)/g, "{$1}")}`);
  const documented = Object.entries<any>(api.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`),
  );
  expect(documented.toSorted()).toEqual([...new Set(routes)].toSorted());
});

describe("real answers satisfy the document", () => {
  test("of accounts", async () => {
    const { email, password, token } = await createAccount(server);
    await held("post", "/api/auth/register", { body: { email: "new@example.org", password } });
    await held("post", "/api/auth/register", { body: { email, password } });
    await held("post", "/api/auth/register", { body: {} });
    await held("post", "/api/auth/login", { body: { email, password } });
    await held("post", "/api/auth/login", { body: { email, password: "wrong" } });
    await held("get", "/api/auth/account", { token });
    await held("get", "/api/auth/account");
    const { code } = await held("post", "/api/auth/link-code", { token, body: { encrypted_key: "sealed" } });
    await held("post", "/api/auth/redeem-code", { token, body: { code } });
    await held("post", "/api/auth/redeem-code", { token, body: { code } });
    const fresh = await held("post", "/api/auth/password", {
      token,
      body: { current_password: password, new_password: "another1" },
    });
    await held("delete", "/api/auth/account", { token: fresh.token, body: { password: "wrong" } });
    await held("delete", "/api/auth/account", { token: fresh.token, body: { password: "another1" } });
  });

  test("of devices", async () => {
    const { token } = await createAccount(server);
    const created = await held("post", "/api/auth/device", { token, body: { name: "laptop", device_type: "macos" } });
    await held("get", "/api/auth/devices", { token });
    await held("post", "/api/auth/refresh", { token: created.token });
    await held("post", "/api/auth/refresh", { token });
    await held("delete", "/api/auth/device/{id}", { token, params: { id: created.device_id } });
    await held("delete", "/api/auth/device/{id}", { token, params: { id: created.device_id } });
    await held("delete", "/api/auth/device/{id}", { token, params: { id: "x" } });
  });

  test("of slots, history and changes", async () => {
    const account = await createAccount(server);
    const { token } = await createDevice(server, account);
    const number = { number: "1" };
    await held("put", "/api/sync/slots/{number}", { token, params: number, body: { encrypted_blob: randomBlob() } });
    await held("put", "/api/sync/slots/{number}", {
      token,
      params: number,
      body: { encrypted_blob: randomBlob(), timestamp: 1 },
    });
    await held("put", "/api/sync/slots/{number}", { token, params: number, body: { encrypted_blob: "?" } });
    await held("get", "/api/sync/slots", { token });
    await held("get", "/api/sync/slots", { token: account.token });
    await held("delete", "/api/sync/slots/{number}", { token, params: number });

    const item = { ...historyItem(), expires_at: "2100-01-01T00:00:00+01:00" };
    await held("post", "/api/sync/history", { token, body: item });
    await held("post", "/api/sync/history", { token, body: item });
    await held("post", "/api/sync/history", { token, body: [item, historyItem()] });
    await held("get", "/api/sync/history", { token, query: "?limit=1" });
    await held("get", "/api/sync/history", { token, query: "?limit=0" });
    await held("delete", "/api/sync/history/{id}", { token, params: { id: item.id } });
    await held("delete", "/api/sync/history/{id}", { token, params: { id: item.id } });

    const page = await held("get", "/api/sync/changes", { token, query: "?limit=1" });
    await held("get", "/api/sync/changes", { token, query: `?cursor=${encodeURIComponent(page.cursor)}` });
    await held("get", "/api/sync/changes", { token, query: "?cursor=nonsense" });
    await held("get", "/api/auth/export", { token });
    await held("get", "/api/sync/ws", { token });
    await held("get", "/api/sync/ws", { token, query: "?protocol=3", headers: UPGRADE });
    await held("get", "/api/sync/ws", { token: account.token, headers: UPGRADE });
  });

  test("of the server itself", async () => {
    await held("get", "/api/info");
    await held("get", "/healthz");
    await held("get", "/readyz");
    await held("get", "/api-docs/openapi.json");
    await held("get", "/docs");
  });

  test("and every success that the document names was among them", () => {
    const successes = Object.entries<any>(api.paths).flatMap(([path, methods]) =>
      Object.entries<any>(methods).flatMap(([method, { responses }]) =>
        Object.keys(responses)
          .filter((status) => status.startsWith("2"))
          .map((status) => `${method} ${path} ${status}`),
      ),
    );
    expect(successes.filter((success) => !seen.has(success))).toEqual([]);
  });
});

test("what goes over a socket satisfies the document, both ways", async () => {
  const account = await createAccount(server);
  const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
  const a = await TestSocket.open(server, first.token, "&protocol=2");
  const b = await TestSocket.open(server, second.token, "&protocol=2");
  await b.nextOf("sync_complete");
  const item = historyPush(randomBlob());
  const messages = [
    slotUpdate(1, randomBlob()),
    slotUpdate(1, randomBlob(), 1),
    { type: "slot_clear", slot_number: 1, timestamp: Date.now() + 1000 },
    { ...item, expires_at: "2100-01-01T00:00:00Z" },
    { type: "history_delete", id: item.id },
    { type: "no_such_type" },
  ];
  for (const message of messages) await a.sendForAnswer(message);
  await b.nextOf("history_deleted");
  const c = await TestSocket.open(server, second.token, "&protocol=2&cursor=nonsense");
  await c.closed;

  for (const message of messages.slice(0, -1)) validate({ $ref: "#/components/schemas/ClientMessage" }, message);
  const received = [...a.received, ...b.received, ...c.received];
  for (const message of received) validate({ $ref: "#/components/schemas/ServerMessage" }, message);
  const types = api.components.schemas.ServerMessage.oneOf
    .map((variant: any) => (variant.$ref ? api.components.schemas[variant.$ref.split("/").at(-1)] : variant))
    .map((variant: any) => variant.properties.type.const);
  expect([...new Set(received.map(({ type }) => type))].toSorted()).toEqual(types.toSorted());
  await Promise.all([a.close(), b.close()]);
});

test("the page needs nothing from elsewhere, and may do nothing but show itself", async () => {
  const response = await server.request("GET", "/docs");
  const page = await response.text();
  const policy = response.headers.get("Content-Security-Policy") ?? "";
  const [style] = /<style>([^]*?)<\/style>/.exec(page)?.slice(1) ?? [];
  const hash = new Bun.CryptoHasher("sha256").update(style ?? "").digest("base64");
  expect(policy).toBe(
    `default-src 'none'; style-src 'sha256-${hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  );
  expect(page).not.toMatch(/<script|<link|<img|@import|src=|url\(|\son\w+=|\sstyle=/i);
  for (const [, target] of page.matchAll(/href="#([^"]*)"/g)) expect(page).toContain(`id="${target}"`);
  for (const path of Object.keys(api.paths)) expect(page).toContain(`<code>${path}</code>`);
  for (const type of ["slot_update", "slot_clear", "history_push", "history_delete", "welcome", "resync_required"]) {
    expect(page).toContain(`<b>${type}</b>`);
  }
});

const UPGRADE = {
  Connection: "Upgrade",
  Upgrade: "websocket",
  "Sec-WebSocket-Version": "13",
  "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
};

function historyItem() {
  const { type: _, ...item } = historyPush(randomBlob());
  return item;
}

interface Asked {
  token?: string;
  body?: unknown;
  query?: string;
  params?: Record<string, string>;
  headers?: Record<string, string>;
}

/** Sends a request and holds it, when the server took it, and the answer against the document. */
async function held(method: string, path: string, { params = {}, query = "", ...options }: Asked = {}): Promise<any> {
  const operation = api.paths[path][method];
  const address = path.replaceAll(/\{(\w+)\}/g, (_, name) => params[name] ?? "") + query;
  const response = await server.request(method.toUpperCase(), address, options);
  const { status } = response;
  const told = operation.responses[status];
  if (told === undefined) throw new Error(`${method} ${path} answered ${status}, which the document does not name`);
  seen.add(`${method} ${path} ${status}`);
  expect(Object.keys(told.headers ?? {}).filter((name) => !response.headers.has(name))).toEqual([]);
  const [mediaType, content] = Object.entries<any>(told.content ?? {})[0] ?? [];
  const text = await response.text();
  if (mediaType === undefined) {
    expect(text).toBe("");
    return undefined;
  }
  expect(response.headers.get("Content-Type")).toStartWith(mediaType);
  if (mediaType !== "application/json") return undefined;
  const value = JSON.parse(text);
  validate(content.schema, value);
  if (response.ok && options.body !== undefined) {
    validate(operation.requestBody.content["application/json"].schema, options.body);
  }
  if (!response.ok) expect(told.description.split(", ")).toContain(value.code);
  return value;
}

/** Holds values against schemas of the document, and refuses fields that it does not name. */
function strictValidator(document: any) {
  const closed = JSON.parse(JSON.stringify(document), (_, value) =>
    value?.type === "object" && value.properties !== undefined ? { ...value, additionalProperties: false } : value,
  );
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  addFormats(ajv);
  ajv.addSchema(closed, "api");
  return (schema: object, value: unknown) => {
    const references = JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"api#/'));
    if (!ajv.validate(references, value)) throw new Error(`${ajv.errorsText()}: ${JSON.stringify(value)}`);
  };
}
