/** Requests that no client would send, byte by byte; slow ones, lying ones, forged ones. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { createConnection } from "node:net";
import { DATABASES, randomBlob, TestSocket } from "./harness.ts";
import { exchange, openRequest, setStage, type RawExchange, type Stage } from "./hostile.ts";

// Attacks are many, and a machine may be busy with other tests.
setDefaultTimeout(30_000);

const BLOB = randomBlob();
const PUT = (token: string) => `PUT /api/sync/slots/9 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\n`;
const BODY = `{"encrypted_blob":"${BLOB}"}`;

/** Each after the request line, the host and the token: how it ends, and the statuses that are right. */
const BROKEN: Record<string, readonly [rest: string, ...statuses: number[]]> = {
  "a length and chunks": [`Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n${BODY}`, 400],
  "two lengths": [`Content-Length: 3\r\nContent-Length: 5\r\n\r\n${BODY}`, 400],
  "a length below zero": [`Content-Length: -3\r\n\r\n${BODY}`, 400],
  "a length that is no number": [`Content-Length: many\r\n\r\n${BODY}`, 400],
  "a length in hexadecimal": [`Content-Length: 0x10\r\n\r\n${BODY}`, 400],
  "a length of 20 digits": [`Content-Length: 99999999999999999999\r\n\r\n${BODY}`, 400, 413],
  "a length of 1 TB": [`Content-Length: 1000000000000\r\n\r\n${BODY}`, 413],
  "a length that is shorter than the body": [`Content-Length: 10\r\n\r\n${BODY}`, 400],
  "an encoding that nobody knows": [`Transfer-Encoding: gzip\r\n\r\n${BODY}`, 400],
  "chunks in disguise": [`Transfer-Encoding: xchunked\r\n\r\n${BODY}`, 400],
  "chunks twice": [`Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`, 400],
  "a chunk whose size is no number": [`Transfer-Encoding: chunked\r\n\r\nzz\r\n${BODY}\r\n0\r\n\r\n`, 400],
  "a chunk whose size is below zero": [`Transfer-Encoding: chunked\r\n\r\n-1\r\n${BODY}\r\n0\r\n\r\n`, 400],
  "a chunk of 2^64 bytes": [`Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n${BODY}\r\n0\r\n\r\n`, 400, 413],
  "a space before a colon": [`Content-Length : ${BODY.length}\r\n\r\n${BODY}`, 400],
  "a folded header": [`X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}`, 400],
  "NUL in a header": ["X-A: a\0b\r\nContent-Length: 2\r\n\r\n{}", 400],
  "a header of 100,000 characters": [`X-A: ${"a".repeat(100_000)}\r\n\r\n`, 431],
  "1,000 headers": [`${"X-A: a\r\n".repeat(1_000)}\r\n`, 431],
  "a body in gzip": ["Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", 400],
  "a body in UTF-16": ["Content-Length: 6\r\n\r\n\xff\xfe{\0}\0", 400],
  "an overlong brace": ["Content-Length: 4\r\n\r\n\xc1\xbb{}", 400],
  "a body cut off in a character": ['Content-Length: 3\r\n\r\n"\xe2\x82', 400],
  "NUL behind the body": [`Content-Length: ${BODY.length + 1}\r\n\r\n${BODY}\0`, 400],
};

/** As they are. */
const NO_HTTP: Record<string, readonly [bytes: string, ...statuses: number[]]> = {
  "no host": ["GET /api/info HTTP/1.1\r\n\r\n", 400],
  "HTTP/9.9": ["GET /api/info HTTP/9.9\r\nHost: x\r\n\r\n", 505],
  "a TLS hello": ["\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400],
  "an address of 100,000 characters": [`GET /${"a".repeat(100_000)} HTTP/1.1\r\nHost: x\r\n\r\n`, 431, 414],
  "no method": [" /api/info HTTP/1.1\r\nHost: x\r\n\r\n", 400],
  nonsense: ["\0\0\0\0\r\n\r\n", 400],
};

/** JSON that parsers of other kinds take. */
const NO_JSON = [
  `{'encrypted_blob':'${BLOB}'}`,
  `{encrypted_blob:"${BLOB}"}`,
  `{"encrypted_blob":"${BLOB}",}`,
  `{"encrypted_blob":"${BLOB}"} // comment`,
  `{"encrypted_blob":"${BLOB}","timestamp":01}`,
  `{"encrypted_blob":"${BLOB}","timestamp":+1}`,
  `{"encrypted_blob":"${BLOB}","timestamp":.5}`,
  `{"encrypted_blob":"${BLOB}","timestamp":NaN}`,
  `{"encrypted_blob":"${BLOB}","timestamp":0x10}`,
  `{"encrypted_blob":"${BLOB}","timestamp":1n}`,
  `"\n"`,
  `{"encrypted_blob":"${BLOB}"}\0`,
  `encrypted_blob=${encodeURIComponent(BLOB)}`,
  `<xml/>`,
];

async function expectStatus(name: string, { text, status, closed }: RawExchange, statuses: readonly number[]) {
  expect([name, statuses.includes(status ?? 0) || (status === undefined && closed)]).toEqual([name, true]);
  expect([name, text]).toEqual([name, expect.not.stringMatching(/\bat \w+ \(|node_modules|SELECT|INSERT/)]);
}

async function expectUntouched(stage: Stage): Promise<void> {
  expect(await stage.server.json("GET", "/api/sync/slots", stage.attacker)).toEqual([]);
  await stage.expectUnharmed();
}

describe.each([...DATABASES])("hostile requests on %s", (database) => {
  const count = Object.keys(BROKEN).length + Object.keys(NO_HTTP).length + NO_JSON.length;
  test(`${count} that break HTTP or JSON are refused, and nothing is written`, async () => {
    await using stage = await setStage(database);
    const { token } = stage.attacker.device;
    for (const [name, [rest, ...statuses]] of Object.entries(BROKEN)) {
      await expectStatus(name, await exchange(stage.server, PUT(token) + rest, { until: "answer" }), statuses);
    }
    for (const [name, [bytes, ...statuses]] of Object.entries(NO_HTTP)) {
      await expectStatus(name, await exchange(stage.server, bytes, { until: "answer" }), statuses);
    }
    for (const body of NO_JSON) {
      const answer = await stage.server.json("PUT", "/api/sync/slots/9", { token, body, status: 400 });
      expect([body, answer.code]).toEqual([body, "invalid_json"]);
    }
    await expectUntouched(stage);
  }, 60_000);

  test("a token is taken from the header or the second subprotocol, and from nowhere else", async () => {
    await using stage = await setStage(database);
    const { server, attacker } = stage;
    const { token } = attacker.device;
    const as = async (headers: Record<string, string>, path = "/api/sync/slots") =>
      (await server.request("GET", path, { headers })).status;
    expect(await as({ Authorization: `bearer ${token}` })).toBe(200);
    for (const authorization of [
      token,
      `Basic ${token}`,
      `Bearer`,
      `Bearer ${token} ${token}`,
      `Bearer ${token},${token}`,
      `Bearer "${token}"`,
      `Bearer\t${token}`,
      `Bearer ${token.toUpperCase()}`,
      `Bearer ${token}\u00a0`,
    ]) {
      expect([authorization.slice(0, 10), await as({ Authorization: authorization })]).toEqual([
        authorization.slice(0, 10),
        401,
      ]);
    }
    expect(await as({ Cookie: `token=${token}` })).toBe(401);
    expect(await as({ "X-Token": token })).toBe(401);
    expect(await as({}, `/api/sync/slots?token=${token}&access_token=${token}`)).toBe(401);

    const upgrade = (headers: Record<string, string>) =>
      new WebSocket(`${server.url.replace("http", "ws")}/api/sync/ws`, { headers });
    const opens = (socket: WebSocket) =>
      new Promise<boolean>((resolve) => {
        socket.addEventListener("open", () => resolve(true));
        socket.addEventListener("close", () => resolve(false));
      });
    const byHeader = upgrade({ Authorization: `Bearer ${token}` });
    const bySubprotocol = new WebSocket(`${server.url.replace("http", "ws")}/api/sync/ws`, ["clipslot", token]);
    expect(await Promise.all([opens(byHeader), opens(bySubprotocol)])).toEqual([true, true]);
    // The answer repeats the first alone: a token has no place in what proxies log.
    expect(bySubprotocol.protocol).toBe("clipslot");
    for (const socket of [byHeader, bySubprotocol]) socket.close();
    const wrong = new WebSocket(`${server.url.replace("http", "ws")}/api/sync/ws`, ["clipslot", "nonsense"]);
    expect(await opens(wrong)).toBe(false);
    await stage.expectUnharmed();
  });

  test("a page of elsewhere opens no socket, whatever it sends", async () => {
    await using stage = await setStage(database, { env: { CORS_ORIGINS: "https://clips.example.org" } });
    const { server, attacker } = stage;
    const status = async (origin: string) => {
      const headers =
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
      const request = `GET /api/sync/ws?token=${attacker.device.token} HTTP/1.1\r\nHost: clips.test\r\n${headers}Origin: ${origin}\r\n\r\n`;
      return (await exchange(server, request, { until: "answer" })).status;
    };
    for (const origin of [
      "https://evil.example",
      "null",
      "https://clips.example.org.evil.example",
      "https://clips.example.org:444",
      "http://clips.example.org",
      "https://evilclips.test",
      "file://",
      "x",
    ]) {
      expect([origin, await status(origin)]).toEqual([origin, 403]);
    }
    for (const origin of ["https://clips.example.org", "https://clips.test"]) {
      expect([origin, await status(origin)]).toEqual([origin, 101]);
    }
    await stage.expectUnharmed();
  });

  test("an invented X-Forwarded-For is no new client", async () => {
    await using stage = await setStage(database, {
      adjust: (config) => ({
        ...config,
        limits: { ...config.limits, loginsPerAddress: { burst: 3, everyMs: 60_000 } },
      }),
    });
    const login = (address: string) =>
      stage.server.request("POST", "/api/auth/login", {
        body: { email: "x@example.org", password: "guess" },
        headers: { "X-Forwarded-For": address, "X-Real-IP": address, Forwarded: `for=${address}` },
      });
    for (let guess = 1; guess <= 3; guess += 1) expect((await login(`192.0.2.${guess}`)).status).toBe(401);
    for (const address of ["192.0.2.9", "127.0.0.1", "::1", "192.0.2.1, 192.0.2.2"]) {
      expect((await login(address)).status).toBe(429);
    }
    expect(stage.server.logLines.filter((line) => line.includes("TRUSTED_PROXIES"))).toHaveLength(1);
    await stage.expectUnharmed();
  });

  test("100 requests that send nothing more keep nobody waiting", async () => {
    await using stage = await setStage(database);
    const { token } = stage.attacker.device;
    const slow = await Promise.all(
      Array.from({ length: 100 }, () =>
        openRequest(stage.server, { method: "PUT", path: "/api/sync/slots/9", token }, BODY),
      ),
    );
    const socket = await TestSocket.open(stage.server, token);
    await socket.close();
    await expectUntouched(stage);
    const answers = await Promise.all(slow.map((request) => request.finish()));
    expect(answers.map(({ status }) => status)).toEqual(Array<number>(100).fill(200));
  });
});

test("old clients name no host; a host that is none opens no socket", async () => {
  await using stage = await setStage("sqlite");
  const { server, attacker } = stage;
  const status = async (request: string) => (await exchange(server, request, { until: "answer" })).status;
  expect(await status("GET /healthz HTTP/1.0\r\n\r\n")).toBe(200);
  expect(await status("GET /healthz?a=/b HTTP/1.1\r\nHost:\r\n\r\n")).toBe(200);
  expect(await status("POST /healthz HTTP/1.0\r\n\r\n")).toBe(405);
  expect(await status("GET /nothing HTTP/1.0\r\n\r\n")).toBe(404);
  const token = `Authorization: Bearer ${attacker.device.token}\r\n`;
  expect(await status(`GET /api/sync/slots HTTP/1.0\r\n${token}\r\n`)).toBe(200);
  const upgrade = `${token}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n`;
  for (const host of ["[bad", "", "a/b"]) {
    const answer = await status(`GET /api/sync/ws HTTP/1.1\r\nHost: ${host}\r\n${upgrade}\r\n`);
    expect([host, answer]).toEqual([host, 400]);
  }
  expect(server.logLines.filter((line) => line.includes('"level":"error"'))).toEqual([]);
  await stage.expectUnharmed();
});

test("slow headers, slow bodies and silence are cut off", async () => {
  const idleTimeoutSeconds = 4;
  await using stage = await setStage("sqlite", {
    adjust: (config) => ({ ...config, http: { ...config.http, idleTimeoutSeconds } }),
  });
  const { server, attacker } = stage;
  const head = PUT(attacker.device.token);
  const started = performance.now();
  const cut = await Promise.all([
    exchange(server, ""),
    exchange(server, "GET /api/info HTTP/1.1\r\nHost: x\r\nX-A: a"),
    exchange(server, `${head}Content-Length: 1000\r\n\r\n{"enc`),
    exchange(server, `${head}Transfer-Encoding: chunked\r\n\r\n5\r\n{"enc\r\n`),
    trickle(server, "GET /api/info HTTP/1.1\r\nHost: x\r\nX-A: ", "a"),
    trickle(server, `${head}Content-Length: 1000\r\n\r\n`, " "),
    trickle(server, `${head}Transfer-Encoding: chunked\r\n\r\n`, "1\r\n \r\n"),
  ]);
  expect(performance.now() - started).toBeLessThan(18_000);
  expect(cut.every(({ closed, status }) => closed && status !== 200)).toBe(true);
  await expectUntouched(stage);
});

/** A byte or so a second, for ever. */
async function trickle(server: { url: string }, head: string, drop: string): Promise<RawExchange> {
  const { hostname, port } = new URL(server.url);
  const socket = createConnection({ host: hostname, port: Number(port) });
  let text = "";
  socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
  socket.on("error", () => {});
  const timer = setInterval(() => socket.write(drop), 500);
  socket.write(head);
  await new Promise((resolve) => socket.on("close", resolve));
  clearInterval(timer);
  const status = /^HTTP\/1\.1 (\d{3})/.exec(text)?.[1];
  return { text, status: status === undefined ? undefined : Number(status), closed: true };
}
