/** A device of protocol 2: the reference client, with somebody who looks over its shoulder. */
import { createMemoryStore, createSyncClient, type ChangeMessage, type WriteResult } from "../../src/client/index.ts";
import type { Message } from "../harness.ts";
import type { Proxy } from "../proxy.ts";
import type { Promised, World } from "./world.ts";

export type NewDevice = Awaited<ReturnType<typeof startNewDevice>>;

export async function startNewDevice(
  world: World,
  name: string,
  { proxy, token, now }: { proxy: Proxy; token: string; now: () => number },
) {
  const store = createMemoryStore();
  const applied = new Set<number>();
  let streamSeq = 0;
  let breaks = 0;
  let fault: string | undefined;
  let wake = () => {};
  let client = create();
  await client.start();

  return {
    kind: "new" as const,
    name,
    proxy,
    get client() {
      return client;
    },
    get isConnected() {
      return client.status === "live";
    },
    get breaks() {
      return breaks;
    },
    /** The last seq of the stream that this connection has brought. */
    get streamSeq() {
      return streamSeq;
    },
    /** What was wrong with the stream or with what the client made of it. */
    get fault() {
      return fault;
    },
    set(slotNumber: number, blob: string) {
      record(client.setSlot(slotNumber, blob), "slot", String(slotNumber), blob);
    },
    clear(slotNumber: number) {
      record(client.clearSlot(slotNumber), "slot", String(slotNumber), null);
    },
    push(id: string, blob: string, contentHash: string) {
      record(client.pushHistory({ id, blob, contentHash }), "push", id, blob);
    },
    delete(id: string) {
      record(client.deleteHistory(id), "delete", id, null);
    },
    changed: (): Promise<void> => new Promise((resolve) => (wake = resolve)),
    /** Ends, and starts again from what was saved. */
    async reload() {
      breaks += 1;
      await client.stop();
      client = create();
      await client.start();
    },
    stop: () => client.stop(),
  };

  function create() {
    return createSyncClient({
      url: proxy.url,
      token,
      store,
      now,
      maxQueued: 10_000,
      reconnect: { firstMs: 5, maxMs: 40 },
      openSocket,
      onStatus(status) {
        world.note(`${name} is ${status}`);
        if (status === "waiting") breaks += 1;
        if (status === "signed_out") fault ??= "it was signed out";
        wake();
      },
      onChange(change) {
        if (change !== undefined) applyOnce(change);
        wake();
      },
      onError: (error) => (fault ??= `the server complained: ${error.message}`),
    });
  }

  function applyOnce({ seq }: ChangeMessage): void {
    if (applied.has(seq)) fault ??= `the change at seq ${seq} was applied twice`;
    applied.add(seq);
  }

  /** [R3] [P5] On one connection the stream only goes forward; what was sent before may be repeated of a slot ([W6]). */
  function openSocket(url: string, protocols: string[]): WebSocket {
    const socket = new WebSocket(url, protocols);
    streamSeq = 0;
    socket.addEventListener("message", ({ data }) => {
      const message: Message = JSON.parse(String(data));
      if (!("seq" in message) || message.type === "ack") return;
      const seq = Number(message["seq"]);
      world.note(`${name} is sent ${message.type} ${message["slot_number"] ?? message["id"]} @${seq}`);
      if (seq > streamSeq) streamSeq = seq;
      else if (!message.type.startsWith("slot_")) fault ??= `the stream went from seq ${streamSeq} back to ${seq}`;
    });
    return socket;
  }

  function record(outcome: Promise<WriteResult>, kind: Promised["kind"], key: string, content: string | null): void {
    void outcome.then((result) => {
      world.note(`${name} hears of its ${kind} ${key}: ${JSON.stringify(result)}`);
      const stands = result.result === "applied" || (result.result === "duplicate" && kind === "slot");
      if (stands) world.promised.push({ kind, key, content, seq: result.seq });
      if (result.result === "refused" && result.code !== "not_found")
        fault ??= `a ${kind} was refused: ${result.message}`;
    });
  }
}
