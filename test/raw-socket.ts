/**
 * A WebSocket client over plain TCP, for what no library lets a test do: withhold a pong, answer it together with a
 * message in one segment, stop reading, break off in the middle of a frame. RFC 6455, as much of it as that needs.
 */
import { createConnection, type Socket } from "node:net";
import { within, type Message } from "./harness.ts";

/** RFC 6455 §5.2. */
const OPCODE = { text: 0x1, close: 0x8, ping: 0x9, pong: 0xa } as const;
type Opcode = (typeof OPCODE)[keyof typeof OPCODE];

/** What the server sent, in order. */
export type RawEvent =
  | { kind: "message"; message: Message }
  | { kind: "ping"; payload: string }
  | { kind: "close"; code: number };

export interface RawOptions {
  /** Beside the token, such as "&protocol=2". */
  query?: string;
  /** Answer pings as libraries do. Off: the test does, or not. */
  answersPings?: boolean;
}

export class RawSocket {
  /** Everything that came, also what was taken. */
  readonly events: RawEvent[] = [];
  readonly ended: Promise<void>;
  readonly #socket: Socket;
  readonly #answersPings: boolean;
  #pending: Buffer = Buffer.alloc(0);
  #upgraded = false;
  #over = false;
  #taken = 0;
  #wake: (() => void) | undefined;

  private constructor(socket: Socket, answersPings: boolean) {
    this.#socket = socket;
    this.#answersPings = answersPings;
    socket.on("data", (chunk: Buffer) => {
      this.#pending = Buffer.concat([this.#pending, chunk]);
      this.#read();
    });
    socket.on("error", () => {});
    this.ended = new Promise((resolve) => {
      socket.on("close", () => {
        this.#over = true;
        resolve();
        this.#wake?.();
      });
    });
  }

  static async open(
    server: { url: string },
    token: string,
    { query = "", answersPings = false }: RawOptions = {},
  ): Promise<RawSocket> {
    const { hostname, port } = new URL(server.url);
    const socket = createConnection({ host: hostname, port: Number(port) });
    const raw = new RawSocket(socket, answersPings);
    socket.write(
      `GET /api/sync/ws?token=${token}${query} HTTP/1.1\r\nHost: ${hostname}:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    await raw.#until(() => raw.#upgraded, "the upgrade");
    return raw;
  }

  /** The next thing that the server sent and the test has not taken. */
  async next(): Promise<RawEvent> {
    await this.#until(() => this.#taken < this.events.length, "something from the server");
    const event = this.events[this.#taken];
    this.#taken += 1;
    if (event === undefined) throw new Error("an event was lost in the test");
    return event;
  }

  /** The next message; fails when a ping or the end comes first. */
  async nextMessage(): Promise<Message> {
    const event = await this.next();
    if (event.kind !== "message") throw new Error(`expected a message, got ${JSON.stringify(event)}`);
    return event.message;
  }

  /** The payload of the next ping; fails when a message comes first. */
  async nextPing(): Promise<string> {
    const event = await this.next();
    if (event.kind !== "ping") throw new Error(`expected a ping, got ${JSON.stringify(event)}`);
    return event.payload;
  }

  /** The next message that fits; everything before it is passed over. */
  async messageWhere(fits: (message: Message) => boolean): Promise<Message> {
    for (;;) {
      const event = await this.next();
      if (event.kind === "message" && fits(event.message)) return event.message;
    }
  }

  /** What came and was not taken. */
  get untaken(): readonly RawEvent[] {
    return this.events.slice(this.#taken);
  }

  send(message: Record<string, unknown>): void {
    this.sendTogether([message]);
  }

  pong(payload: string): void {
    this.sendTogether([{ pong: payload }]);
  }

  /** Several frames in one write, so that the server reads them in one turn. */
  sendTogether(frames: (Record<string, unknown> | { pong: string })[]): void {
    this.#socket.write(
      Buffer.concat(
        frames.map((frame) =>
          "pong" in frame
            ? encodeFrame(OPCODE.pong, String(frame["pong"]))
            : encodeFrame(OPCODE.text, JSON.stringify(frame)),
        ),
      ),
    );
  }

  /** Bytes as they are: frames that no library would send. */
  write(bytes: Uint8Array): void {
    this.#socket.write(bytes);
  }

  /** Asks something that is answered at once: what the server has sent to this socket by now has come when this resolves. */
  async settle(): Promise<void> {
    const ref = crypto.randomUUID();
    this.send({ type: "no_such_type", ref });
    await this.answerTo(ref);
  }

  /** The answer to the message with this ref; everything before it stays to be taken. */
  async answerTo(ref: string): Promise<Message> {
    const isAnswer = (event: RawEvent) => event.kind === "message" && event.message["ref"] === ref;
    await this.#until(() => this.events.some(isAnswer), "an answer");
    const [answer] = this.events.splice(this.events.findIndex(isAnswer), 1);
    if (answer?.kind !== "message") throw new Error("an answer was lost in the test");
    return answer.message;
  }

  /** Reads on, but slowly: after so many bytes it pauses for so long. */
  slowDown(bytes: number, milliseconds: number): void {
    let read = 0;
    this.#socket.on("data", (chunk: Buffer) => {
      read += chunk.length;
      if (read < bytes) return;
      read = 0;
      this.#socket.pause();
      setTimeout(() => this.#socket.resume(), milliseconds);
    });
  }

  /** Stops reading: the server's bytes pile up. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  /** As a lost network: no goodbye. */
  destroy(): void {
    this.#socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.destroy();
    await this.ended;
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const deadline = Date.now() + 10_000;
    while (!condition()) {
      if (this.#over) throw new Error(`the connection ended while ${what} was expected`);
      await within(new Promise<void>((resolve) => (this.#wake = resolve)), what, deadline - Date.now());
    }
  }

  #read(): void {
    if (!this.#upgraded) {
      const end = this.#pending.indexOf("\r\n\r\n");
      if (end === -1) return;
      const status = this.#pending.subarray(0, end).toString().split("\r\n")[0] ?? "";
      if (!status.includes(" 101 ")) throw new Error(`no upgrade: ${status}`);
      this.#upgraded = true;
      this.#pending = this.#pending.subarray(end + 4);
    }
    for (let frame = decodeFrame(this.#pending); frame !== undefined; frame = decodeFrame(this.#pending)) {
      this.#pending = this.#pending.subarray(frame.length);
      this.#take(frame.opcode, frame.payload);
    }
    this.#wake?.();
  }

  #take(opcode: number, payload: Buffer): void {
    if (opcode === OPCODE.text) this.events.push({ kind: "message", message: JSON.parse(payload.toString()) });
    if (opcode === OPCODE.close)
      this.events.push({ kind: "close", code: payload.length < 2 ? 1005 : payload.readUInt16BE(0) });
    // Bun's own keep-alive pings are empty: answered always, told to nobody.
    if (opcode === OPCODE.ping && payload.length > 0) this.events.push({ kind: "ping", payload: payload.toString() });
    if (opcode === OPCODE.ping && (this.#answersPings || payload.length === 0)) this.pong(payload.toString());
  }
}

/** A server's frame is not masked and, with ours, never split. */
function decodeFrame(bytes: Buffer): { opcode: number; payload: Buffer; length: number } | undefined {
  if (bytes.length < 2) return undefined;
  const short = bytes.readUInt8(1) & 0x7f;
  const header = short === 126 ? 4 : short === 127 ? 10 : 2;
  if (bytes.length < header) return undefined;
  const size = short === 126 ? bytes.readUInt16BE(2) : short === 127 ? Number(bytes.readBigUInt64BE(2)) : short;
  if (bytes.length < header + size) return undefined;
  return { opcode: bytes.readUInt8(0) & 0x0f, payload: bytes.subarray(header, header + size), length: header + size };
}

/** A client's frame is masked (RFC 6455 §5.3). */
function encodeFrame(opcode: Opcode, text: string): Buffer {
  const payload = Buffer.from(text);
  const header = Buffer.alloc(payload.length < 126 ? 2 : payload.length < 65_536 ? 4 : 10);
  header.writeUInt8(0x80 | opcode, 0);
  if (header.length === 2) header.writeUInt8(0x80 | payload.length, 1);
  else if (header.length === 4) {
    header.writeUInt8(0x80 | 126, 1);
    header.writeUInt16BE(payload.length, 2);
  } else {
    header.writeUInt8(0x80 | 127, 1);
    header.writeBigUInt64BE(BigInt(payload.length), 2);
  }
  const mask = crypto.getRandomValues(new Uint8Array(4));
  const masked = payload.map((byte, index) => byte ^ (mask[index % 4] ?? 0));
  return Buffer.concat([header, mask, masked]);
}
