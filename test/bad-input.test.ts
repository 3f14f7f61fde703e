/** Whatever comes in: a clear refusal, nothing changed, no fault of ours in the log. On both databases. */
import { describe, expect, test } from "bun:test";
import { connect as connectTcp } from "node:net";
import {
  createAccount,
  createDevice,
  DATABASES,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  type TestServer,
} from "./harness.ts";

const BLOB = Buffer.from("ENC:abc").toString("base64");
const ID = "0190a5e0-7c1b-7d3e-9f00-2b8f6f1c9a11";
const EMAIL = "new@example.org";

/** A body, and the field its refusal has to name. */
type BadBodies = Record<string, readonly [body: unknown, status: number, named?: string]>;

const NO_OBJECTS: BadBodies = {
  nothing: ["", 400, "JSON"],
  "no JSON": ["{", 400, "JSON"],
  "JSON and more": ['{"encrypted_blob":"QQ=="} x', 400, "JSON"],
  null: ["null", 400],
  "a number": ["3", 400],
  "a text": ['"x"', 400],
  "an empty object": ["{}", 400, "missing"],
  __proto__: ['{"__proto__":{"encrypted_blob":"QQ=="},"encrypted_blob":"QQ=="}', 400, "not allowed"],
  "__proto__ in disguise": ['{"x":[{"\\u005f_proto__":1}]}', 400, "not allowed"],
  "depth 33": [`{"x":${"[".repeat(33)}${"]".repeat(33)}}`, 400, "deep"],
  "depth 10,000": ["[".repeat(10_000), 400, "deep"],
  "5,000 objects in a list": [`[${"{},".repeat(5_000)}{}]`, 400, "many"],
  "5,000 numbers in a list": [`[${"1,".repeat(5_000)}1]`, 400, "many"],
};

const BAD_BLOBS: BadBodies = {
  "no blob": [{}, 400, "encrypted_blob"],
  "null as blob": [{ encrypted_blob: null }, 400, "encrypted_blob"],
  "a number as blob": [{ encrypted_blob: 5 }, 400, "encrypted_blob"],
  "an empty blob": [{ encrypted_blob: "" }, 400, "encrypted_blob"],
  base64url: [{ encrypted_blob: "_-8=" }, 400, "encrypted_blob"],
  "base64 without padding": [{ encrypted_blob: "QQ" }, 400, "encrypted_blob"],
  "base64 with unused bits": [{ encrypted_blob: "QR==" }, 400, "encrypted_blob"],
  "base64 with a space": [{ encrypted_blob: "QQ= =" }, 400, "encrypted_blob"],
  "base64 with a line feed": [{ encrypted_blob: "QUJD\nQUJD" }, 400, "encrypted_blob"],
  "a lone surrogate": ['{"encrypted_blob":"\\ud800"}', 400, "encrypted_blob"],
};

const BAD_SLOTS: BadBodies = {
  ...NO_OBJECTS,
  ...BAD_BLOBS,
  ...Object.fromEntries(
    ["0", "-1", "1.5", "1e308", "1e999", "9007199254740993", '"1"', "true", "[]"].map((text) => [
      `timestamp ${text}`,
      [`{"encrypted_blob":"${BLOB}","timestamp":${text}}`, 400, "timestamp"] as const,
    ]),
  ),
  "base_seq -1": [{ encrypted_blob: BLOB, base_seq: -1 }, 400, "base_seq"],
  "a blob above the limit": [{ encrypted_blob: Buffer.alloc(4_097).toString("base64") }, 413, "encrypted_blob"],
  "a body above the limit": [" ".repeat(3 * 1024 * 1024), 413],
};

const item = (fields: object) => ({ id: ID, encrypted_blob: BLOB, content_hash: "aa", ...fields });
const BAD_ITEMS: BadBodies = {
  ...NO_OBJECTS,
  "an id that is none": [item({ id: "1" }), 400, "id"],
  "no id": [item({ id: undefined }), 400, "id"],
  "no hash": [item({ content_hash: undefined }), 400, "content_hash"],
  "an empty hash": [item({ content_hash: "" }), 400, "content_hash"],
  "a hash with a space": [item({ content_hash: "a b" }), 400, "content_hash"],
  "a hash of 129 characters": [item({ content_hash: "a".repeat(129) }), 400, "content_hash"],
  "a time that is none": [item({ created_at: "yesterday" }), 400, "created_at"],
  "a time without a zone": [item({ created_at: "2024-01-01T00:00:00" }), 400, "created_at"],
  "a time before 1970": [item({ created_at: "1969-01-01T00:00:00Z" }), 400, "created_at"],
  "a number as time": [item({ expires_at: 1_700_000_000_000 }), 400, "expires_at"],
  "an empty list": [[], 400, "1 item"],
  "a list of 101": [Array.from({ length: 101 }, () => item({})), 400, "100 items"],
  "a list with one bad item": [[item({}), item({ id: "x" })], 400, "[1].id"],
  "a list in a list": [[[item({})]], 400, "[0]"],
};

const BAD_REGISTRATIONS: BadBodies = {
  ...NO_OBJECTS,
  "no address": [{ password: "test123" }, 400, "email"],
  "an address that is none": [{ email: "x", password: "test123" }, 400, "email"],
  "a list as address": [{ email: [EMAIL], password: "test123" }, 400, "email"],
  "an address with NUL": [{ email: "a\0@example.org", password: "test123" }, 400, "email"],
  "an address of 255 characters": [{ email: `${"a".repeat(243)}@example.org`, password: "test123" }, 400, "email"],
  "no password": [{ email: EMAIL }, 400, "password"],
  "an empty password": [{ email: EMAIL, password: "" }, 400, "password"],
  "a password of 5": [{ email: EMAIL, password: "12345" }, 400, "password"],
  "a password of 1,025 bytes": [{ email: EMAIL, password: `${"é".repeat(512)}x` }, 400, "password"],
  "a password with a lone surrogate": [`{"email":"${EMAIL}","password":"secret\\ud800"}`, 400, "password"],
  "a body above the limit": [" ".repeat(20_000), 413],
};

const BAD_DEVICES: BadBodies = {
  ...NO_OBJECTS,
  "no name": [{ device_type: "macos" }, 400, "name"],
  "a blank name": [{ name: "  ", device_type: "macos" }, 400, "name"],
  "a name with NUL": [{ name: "a\0b", device_type: "macos" }, 400, "name"],
  "a name with a lone surrogate": ['{"name":"\\udc00","device_type":"macos"}', 400, "name"],
  "a name of 129 characters": [{ name: "a".repeat(129), device_type: "macos" }, 400, "name"],
  "no type": [{ name: "laptop" }, 400, "device_type"],
};

const BAD_BODIES: readonly (readonly [method: string, path: string, bodies: BadBodies])[] = [
  ["PUT", "/api/sync/slots/1", BAD_SLOTS],
  ["POST", "/api/sync/history", BAD_ITEMS],
  ["POST", "/api/auth/register", BAD_REGISTRATIONS],
  [
    "POST",
    "/api/auth/login",
    { ...NO_OBJECTS, "a number as password": [{ email: EMAIL, password: 1 }, 400, "password"] },
  ],
  ["POST", "/api/auth/device", BAD_DEVICES],
  [
    "POST",
    "/api/auth/password",
    { ...NO_OBJECTS, "a short one": [{ current_password: "test123", new_password: "x" }, 400, "new_password"] },
  ],
  ["DELETE", "/api/auth/account", NO_OBJECTS],
  ["POST", "/api/auth/link-code", { ...NO_OBJECTS, "an empty key": [{ encrypted_key: "" }, 400, "encrypted_key"] }],
  ["POST", "/api/auth/redeem-code", { ...NO_OBJECTS, "a number": [{ code: 123_456 }, 400, "code"] }],
];

const BAD_ADDRESSES: readonly (readonly [method: string, path: string, status: number])[] = [
  ...["0", "11", "-1", "1.5", "one", "%00", "1%2F2", "9".repeat(40)].map(
    (slot) => ["PUT", `/api/sync/slots/${slot}`, 400] as const,
  ),
  ["DELETE", "/api/sync/slots/0", 400],
  ["DELETE", "/api/sync/history/1", 400],
  ["DELETE", `/api/sync/history/${ID}`, 404],
  ["DELETE", "/api/auth/device/%E0%A4%A", 400],
  ["DELETE", `/api/auth/device/${ID}`, 404],
  ...[
    "limit=0",
    "limit=-1",
    "limit=1001",
    "limit=1.5",
    "limit=x",
    "limit=",
    "offset=-1",
    "offset=1e3",
    "before=x",
    `before=${Buffer.from(`253402300800000 ${ID}`).toString("base64url")}`, // the year 10000
    "before=",
  ].map((query) => ["GET", `/api/sync/history?${query}`, 400] as const),
  ["GET", "/api/sync/changes?limit=0", 400],
  ["GET", `/api/sync/changes?cursor=${"x".repeat(129)}`, 400],
];

describe.each([...DATABASES])("bad input on %s", (database) => {
  test("of every call is refused in plain words, and changes nothing", async () => {
    await using server = await startTestServer({ database, env: { MAX_BLOB_BYTES: "4096" } });
    const token = await accountWithContent(server);
    const before = await everything(server, token);

    for (const [method, path, bodies] of BAD_BODIES) {
      for (const [name, [body, status, named]] of Object.entries(bodies)) {
        const response = await server.request(method, path, { token, body });
        await expectRefusal(`${method} ${path}: ${name}`, response, status, named);
      }
    }
    for (const [method, path, status] of BAD_ADDRESSES) {
      const body = method === "PUT" ? { encrypted_blob: BLOB } : undefined;
      await expectRefusal(`${method} ${path}`, await server.request(method, path, { token, body }), status);
    }

    expect(await everything(server, token)).toEqual(before);
    expect(server.logLines.filter((line) => line.includes('"level":"error"'))).toEqual([]);
  }, 30_000);

  test("that is no UTF-8, comes in pieces, or breaks off, harms nobody", async () => {
    await using server = await startTestServer({ database, env: { MAX_BLOB_BYTES: "4096" } });
    const token = await accountWithContent(server);
    const before = await everything(server, token);
    const put = (body: Uint8Array<ArrayBuffer> | ReadableStream) =>
      fetch(`${server.url}/api/sync/slots/1`, { method: "PUT", headers: { Authorization: `Bearer ${token}` }, body });

    await expectRefusal(
      "no UTF-8",
      await put(Uint8Array.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])),
      400,
      "UTF-8",
    );
    await expectRefusal("chunks above the limit", await put(chunks(Array<string>(50).fill(" ".repeat(65_536)))), 413);
    await breakOff(server, token);
    expect(await everything(server, token)).toEqual(before);
    expect(server.logLines.filter((line) => line.includes('"level":"error"'))).toEqual([]);

    const whole = await put(chunks(['{"encrypted_', `blob":"${BLOB}"}`]));
    expect(whole.status).toBe(200);
  });

  test("a name that stands twice: the last one counts", async () => {
    await using server = await startTestServer({ database });
    const token = await accountWithContent(server);
    const body = `{"encrypted_blob":"no base64","encrypted_blob":"${BLOB}"}`;
    await server.json("PUT", "/api/sync/slots/1", { token, body, status: 200 });
  });
});

async function accountWithContent(server: TestServer): Promise<string> {
  const { token } = await createDevice(server, await createAccount(server));
  await server.json("PUT", "/api/sync/slots/1", { token, body: { encrypted_blob: randomBlob() } });
  await server.json("POST", "/api/sync/history", { token, body: { ...item({}), id: crypto.randomUUID() } });
  return token;
}

test("[E1] a limit that has 401 in it logs nobody out, on a socket or over REST", async () => {
  await using server = await startTestServer({ env: { MAX_BLOB_BYTES: "14016" } });
  const { token } = await createDevice(server, await createAccount(server));
  const body = { encrypted_blob: Buffer.alloc(14_017).toString("base64") };
  const overRest = await server.json("PUT", "/api/sync/slots/1", { token, body, status: 413 });
  const socket = await TestSocket.open(server, token);
  const { message, code } = await socket.sendForAnswer(slotUpdate(1, body.encrypted_blob));
  expect(code).toBe("payload_too_large");
  expect(message).not.toMatch(/401/);
  expect(overRest).toEqual({ error: message, code });
  await socket.close();
});

/** What the account's owner can see of it. */
async function everything(server: TestServer, token: string) {
  const paths = ["/api/sync/slots", "/api/sync/history", "/api/sync/changes", "/api/auth/account"];
  return Promise.all(paths.map((path) => server.json("GET", path, { token })));
}

async function expectRefusal(name: string, response: Response, status: number, named = ""): Promise<void> {
  const text = await response.text();
  expect([name, response.status, text]).toEqual([name, status, expect.stringContaining('"error":')]);
  const body = JSON.parse(text) as { error: string; code: string };
  expect([name, body]).toEqual([
    name,
    { error: expect.stringContaining(named), code: expect.stringMatching(/^[a-z_]+$/) },
  ]);
  expect(body.error).not.toMatch(/401|unauthorized|expired|\bat \w+ \(|SELECT|INSERT/i);
}

function chunks(texts: readonly string[]): ReadableStream {
  return new ReadableStream({
    start(controller) {
      for (const text of texts) controller.enqueue(new TextEncoder().encode(text));
      controller.close();
    },
  });
}

/** Promises 100 bytes, sends five, and hangs up; resolves when the server has closed its end too. */
async function breakOff(server: TestServer, token: string): Promise<void> {
  const { hostname, port } = new URL(server.url);
  await new Promise<void>((resolve, reject) => {
    const socket = connectTcp(Number(port), hostname, () => {
      socket.end(
        `PUT /api/sync/slots/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nContent-Length: 100\r\n\r\n{"enc`,
      );
    });
    socket
      .on("close", () => resolve())
      .on("error", reject)
      .resume();
  });
}
