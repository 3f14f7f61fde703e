/** Frames that no client would send. On both databases: each gets its answer, and nobody else notices. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { createDevice, DATABASES, randomBlob, slotUpdate, TestSocket, within } from "./harness.ts";
import { setStage } from "./hostile.ts";
import { RawSocket } from "./raw-socket.ts";

// Attacks are many, and a machine may be busy with other tests.
setDefaultTimeout(30_000);

const FIN = 0x80;
const MASKED = 0x80;
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PING = 9;
const LIMIT = 8_192;
/** Above the largest frame, whose base64 is a third longer than the blob, plus 4 KiB for its fields. */
const TOO_LONG = 20_000;

/** RFC 6455 §5.2, with every field as wrong as the test wants it. */
function frame(
  firstByte: number,
  payload: Uint8Array | string,
  { masked = true, sizeBytes = 0, declared }: { masked?: boolean; sizeBytes?: 0 | 2 | 8; declared?: bigint } = {},
): Buffer {
  const body = Buffer.from(payload);
  const size = declared ?? BigInt(body.length);
  const width = sizeBytes || (size < 126n ? 0 : size < 65_536n ? 2 : 8);
  const header = Buffer.alloc(2 + width);
  header.writeUInt8(firstByte, 0);
  header.writeUInt8((masked ? MASKED : 0) | (width === 0 ? Number(size) : width === 2 ? 126 : 127), 1);
  if (width === 2) header.writeUInt16BE(Number(size), 2);
  if (width === 8) header.writeBigUInt64BE(size, 2);
  const mask = Buffer.from([1, 2, 3, 4]);
  return masked
    ? Buffer.concat([header, mask, body.map((byte, index) => byte ^ (mask[index % 4] ?? 0))])
    : Buffer.concat([header, body]);
}

const message = JSON.stringify({ ...slotUpdate(1, randomBlob()), ref: "ours" });
const half = Math.floor(message.length / 2);

/** Each ends its connection. */
const BROKEN: Record<string, Buffer> = {
  "no mask": frame(FIN | TEXT, message, { masked: false }),
  "reserved bit 1, with no compression agreed on": frame(FIN | 0x40 | TEXT, message),
  "reserved bit 2": frame(FIN | 0x20 | TEXT, message),
  "reserved bit 3": frame(FIN | 0x10 | TEXT, message),
  "reserved opcode 3": frame(FIN | 3, message),
  "reserved opcode 15": frame(FIN | 15, ""),
  "a ping in pieces": frame(PING, "a"),
  "a ping of 126 bytes": frame(FIN | PING, "a".repeat(126)),
  "a close of 126 bytes": frame(FIN | CLOSE, Buffer.alloc(126, 3)),
  "a continuation of nothing": frame(FIN, message),
  "a message inside of another": Buffer.concat([frame(TEXT, "{"), frame(FIN | TEXT, message)]),
  "a frame that is too long": frame(FIN | TEXT, "x".repeat(TOO_LONG)),
  "a frame that says it is 2^62 bytes": frame(FIN | TEXT, "{", { declared: 1n << 62n }),
  "a frame that says it is 2^63 bytes": frame(FIN | TEXT, "{", { declared: 1n << 63n }),
  "pieces that are too long together": Buffer.concat([
    frame(TEXT, "x".repeat(8_000)),
    frame(0, "x".repeat(8_000)),
    frame(0, "x".repeat(8_000)),
  ]),
  "no UTF-8": frame(FIN | TEXT, Buffer.from([0x22, 0xff, 0x22])),
  "UTF-8 cut off": frame(FIN | TEXT, Buffer.from([0x22, 0xe2, 0x82])),
  "an overlong slash": frame(FIN | TEXT, Buffer.from([0x22, 0xc0, 0xaf, 0x22])),
  "a surrogate in UTF-8": frame(FIN | TEXT, Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22])),
  "no UTF-8 over two pieces": Buffer.concat([
    frame(TEXT, Buffer.from([0x22, 0xe2])),
    frame(FIN, Buffer.from([0x22, 0x22])),
  ]),
  "a close with a reason that is no UTF-8": frame(FIN | CLOSE, Buffer.from([0x03, 0xe8, 0xff])),
  "a close with code 999": frame(FIN | CLOSE, Buffer.from([0x03, 0xe7])),
  "a close of one byte": frame(FIN | CLOSE, Buffer.from([0x03])),
  HTTP: Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
};

const BLOB = randomBlob();
const ID = crypto.randomUUID();
const slot = (fields: string) =>
  `{"type":"slot_update","slot_number":1,"encrypted_blob":"${BLOB}","timestamp":5${fields}}`;
const slotWith = (name: string, value: string) =>
  `{"type":"slot_update","slot_number":${name === "slot_number" ? value : 1},"encrypted_blob":${name === "encrypted_blob" ? value : `"${BLOB}"`},"timestamp":${name === "timestamp" ? value : 5}}`;
const item = (name: string, value: string) =>
  `{"type":"history_push","id":${name === "id" ? value : `"${ID}"`},"encrypted_blob":"${BLOB}","content_hash":${name === "content_hash" ? value : '"aa"'}}`;

/** Each is answered with an error, and the socket goes on. */
const REFUSED: Record<string, string> = {
  nothing: "",
  "a space": " ",
  "no JSON": "{",
  "a number": "7",
  null: "null",
  "a list of messages": `[${message}]`,
  "no type": "{}",
  "a type that is a list": '{"type":["slot_update"]}',
  "a type of ours": '{"type":"slot_updated","slot_number":1}',
  "the type __proto__": '{"type":"__proto__"}',
  "the type constructor": '{"type":"constructor"}',
  __proto__: slot(',"__proto__":{"type":"slot_clear"}'),
  "__proto__ inside": slot(',"x":{"__proto__":1}'),
  "a type that stands twice": `{"type":"slot_update","type":"no_such_type","slot_number":1,"encrypted_blob":"${BLOB}","timestamp":5}`,
  "brackets 4,000 deep": "[".repeat(4_000),
  "objects 1,000 deep": `${'{"a":'.repeat(1_000)}1${"}".repeat(1_000)}`,
  "5,000 empty objects": `[${"{},".repeat(5_000)}{}]`,
  "a byte order mark": `\ufeff${message}`,
  "NUL behind the message": `${message}\0`,
  "two messages": `${message}${message}`,
  "a comment": `/* */${message}`,
  "a lone surrogate": slotWith("encrypted_blob", '"\\ud800"'),
  ...Object.fromEntries(
    ["0", "11", "-1", "1.5", "1e999", '"1"', "true", "null", "[1]", "{}", "01", "+1", "0x1", "NaN", "1e1000"].map(
      (value) => [`slot_number ${value}`, slotWith("slot_number", value)],
    ),
  ),
  ...Object.fromEntries(
    ["0", "-1", "1.5", "9007199254740993", "1e20", '"5"', "null", "false", "[5]", "Infinity"].map((value) => [
      `timestamp ${value}`,
      slotWith("timestamp", value),
    ]),
  ),
  ...Object.fromEntries(
    [
      '""',
      '"QQ"',
      '"QQ="',
      '"QR=="',
      '"_-8="',
      '"QQ==QQ=="',
      '"QQ===="',
      '"Q Q=="',
      '"QQ==\\n"',
      '"QQ%3D%3D"',
      '"АА=="',
      "{}",
      "1",
    ].map((value) => [`encrypted_blob ${value}`, slotWith("encrypted_blob", value)]),
  ),
  ...Object.fromEntries(
    ['""', '"1"', `"{${ID}}"`, `"${ID}0"`, `" ${ID}"`, `"${ID.replaceAll("-", "")}"`, "null", "5"].map((value) => [
      `id ${value.replace(ID, "id")}`,
      item("id", value),
    ]),
  ),
  ...Object.fromEntries(
    ['""', '"a b"', '"a\\u0000"', '"ä"', `"${"a".repeat(129)}"`, "null", "{}"].map((value) => [
      `content_hash ${value.slice(0, 20)}`,
      item("content_hash", value),
    ]),
  ),
  "a ref of 65 characters": slot(`,"ref":"${"r".repeat(65)}"`),
  "a ref that is a number": slot(',"ref":1'),
  "base_seq -1": slot(',"base_seq":-1'),
  "the clearing of slot 0": '{"type":"slot_clear","slot_number":0,"timestamp":5}',
  "the deletion of nothing": '{"type":"history_delete"}',
  "the deletion of an item that never was": `{"type":"history_delete","id":"${ID}"}`,
};

describe.each([...DATABASES])("hostile frames on %s", (database) => {
  const env = { MAX_BLOB_BYTES: String(LIMIT) };

  test(`${Object.keys(BROKEN).length} that break RFC 6455 end their own connection, and no other`, async () => {
    await using stage = await setStage(database, { env });
    for (const [name, bytes] of Object.entries(BROKEN)) {
      await using raw = await RawSocket.open(stage.server, stage.attacker.device.token);
      raw.write(bytes);
      await within(raw.ended, `the end of: ${name}`, 5_000).catch((error: unknown) => {
        throw new Error(`${name}: ${String(error)}`);
      });
      const closes = raw.events.flatMap((event) => (event.kind === "close" ? [event.code] : []));
      expect([name, closes.every((code) => [1000, 1002, 1006, 1007, 1009].includes(code))]).toEqual([name, true]);
    }
    expect(await stage.server.json("GET", "/api/sync/slots", stage.attacker)).toEqual([]);
    await stage.expectUnharmed();
  }, 60_000);

  test(`${Object.keys(REFUSED).length} that are no message of ours are answered with an error each, in order`, async () => {
    await using stage = await setStage(database, { env });
    const socket = await TestSocket.open(stage.server, stage.attacker.device.token);
    for (const [name, text] of Object.entries(REFUSED)) {
      socket.send(text);
      const { type, code, message: words } = await socket.next();
      expect([name, type, code]).toEqual([
        name,
        "error",
        expect.stringMatching(/^(bad_request|invalid_json|not_found)$/),
      ]);
      expect([name, words]).toEqual([
        name,
        expect.not.stringMatching(/401|unauthorized|expired|\bat \w+ \(|SELECT|INSERT/i),
      ]);
    }
    socket.sendBytes(new Uint8Array([1, 2, 3]));
    expect(await socket.next()).toMatchObject({ type: "error", code: "bad_request" });
    expect(socket.isOpen).toBe(true);
    expect(await stage.server.json("GET", "/api/sync/slots", stage.attacker)).toEqual([]);
    expect(await stage.server.json("GET", "/api/sync/history", stage.attacker)).toEqual([]);
    expect(await socket.sendForAnswer(JSON.parse(message))).toMatchObject({ type: "ack", result: "applied" });
    await socket.close();
    await stage.expectUnharmed();
  });

  test("a message in pieces with a ping between them is a message like any other", async () => {
    await using stage = await setStage(database, { env });
    await using raw = await RawSocket.open(stage.server, stage.attacker.device.token);
    raw.write(frame(TEXT, message.slice(0, half)));
    raw.write(frame(FIN | PING, "between"));
    raw.write(frame(0, message.slice(half, -1)));
    raw.write(frame(FIN, `${message.slice(-1)}`));
    expect(await raw.answerTo("ours")).toMatchObject({ type: "ack", result: "applied" });
    raw.write(frame(FIN | BINARY, message));
    expect(await raw.messageWhere(({ type }) => type === "error")).toMatchObject({ code: "bad_request" });
    await stage.expectUnharmed();
  });

  test.each([
    ["pings", frame(FIN | PING, "flood")],
    ["pongs", frame(FIN | 10, "flood")],
    ["empty messages", frame(FIN | TEXT, "")],
    ["messages of a byte", frame(FIN | TEXT, "7")],
  ])(
    "a flood of %s is cut off, and delays nobody",
    async (_name, bytes) => {
      await using stage = await setStage(database, { env });
      await using raw = await RawSocket.open(stage.server, stage.attacker.device.token);
      const many = Buffer.concat(Array.from({ length: 1_000 }, () => bytes));
      let ended = false;
      void raw.ended.then(() => (ended = true));
      for (let sent = 0; sent < 200 && !ended; sent += 1) {
        raw.write(many);
        await Bun.sleep(0);
      }
      await within(raw.ended, "the flood to be cut off", 5_000);
      expect(raw.events.flatMap((event) => (event.kind === "close" ? [event.code] : []))).toEqual([1008]);
      await stage.expectUnharmed();
    },
    30_000,
  );

  test("sockets that are half open, stalled in a frame, or gone without a word delay nobody", async () => {
    await using stage = await setStage(database);
    const { server, attacker } = stage;
    const idle: RawSocket[] = [];
    for (let count = 0; count < 20; count += 1) {
      const raw = await RawSocket.open(server, (await createDevice(server, attacker)).token);
      idle.push(raw);
      if (count % 4 === 0) raw.write(frame(FIN | TEXT, message).subarray(0, 20));
      if (count % 4 === 1) raw.destroy();
      if (count % 4 === 2) raw.pause();
    }
    const writer = await TestSocket.open(server, attacker.device.token);
    for (let count = 0; count < 30; count += 1) {
      expect(await writer.sendForAnswer(slotUpdate(1, randomBlob(200_000), Date.now() + count))).toMatchObject({
        type: "ack",
      });
    }
    await stage.expectUnharmed();
    await writer.close();
    for (const raw of idle) raw.destroy();
  });
});
