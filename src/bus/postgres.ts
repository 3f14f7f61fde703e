/**
 * The bus over PostgreSQL's LISTEN and NOTIFY. Messages are gathered for a few milliseconds and go out in one NOTIFY,
 * outside of any write: a NOTIFY inside a transaction takes a lock of the whole database at its commit.
 *
 * A listener can be dead without knowing (a firewall that forgot the connection), so every instance hears its own
 * heartbeat; one that does not come back has the listener replaced.
 */
import postgres from "postgres";
import { z } from "zod";
import type { Config } from "../config.ts";
import type { Logger } from "../log.ts";
import { uuid } from "../protocol.ts";
import { withinDeadline } from "../waiting.ts";
import type { Bus, BusMessage } from "./bus.ts";

const CHANNEL = "clipslot";

const message = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("changes"), userId: uuid, seq: z.int().nonnegative() }),
  z.object({
    kind: z.literal("revoked"),
    userId: uuid,
    deviceId: uuid.nullable(),
    tokenGeneration: z.int().nonnegative().nullable(),
  }),
]);
const envelope = z.object({ from: uuid, messages: z.array(message) });

export interface PostgresBusOptions {
  /** A connection of its own: LISTEN does not work through a transaction pooler. */
  url: string;
  config: Config;
  log: Logger;
}

/** Connects when somebody listens or tells; until `close` it keeps one connection for LISTEN and one for NOTIFY. */
export function postgresBus({ url, config, log }: PostgresBusOptions): Bus {
  const {
    gatherMs,
    payloadBytes,
    queueMessages,
    heartbeatMs,
    heartbeatTimeoutMs,
    notifyTimeoutMs,
    connectTimeoutSeconds,
  } = config.bus;
  const self = crypto.randomUUID();
  let client = connect();
  let changes = new Map<string, number>();
  let revocations: BusMessage[] = [];
  let gathering: Timer | undefined;
  let sending: Promise<void> = Promise.resolve();
  let heardAt = performance.now();
  let beat: Timer | undefined;
  let hear: { onMessage: (message: BusMessage) => void; onGap: () => void } | undefined;

  return {
    tell(told) {
      if (changes.size + revocations.length >= queueMessages) return; // the others look by themselves
      if (told.kind === "changes") changes.set(told.userId, told.seq);
      else revocations.push(told);
      gathering ??= setTimeout(() => {
        gathering = undefined;
        sending = sending.then(send);
      }, gatherMs);
    },
    async listen(onMessage, onGap) {
      hear = { onMessage, onGap };
      await subscribe();
      beat = setInterval(heartbeat, heartbeatMs);
    },
    async close() {
      clearInterval(beat);
      clearTimeout(gathering);
      hear = undefined;
      await sending.then(send);
      await client.end({ timeout: 1 });
    },
  };

  function connect() {
    return postgres(url, {
      max: 1,
      connect_timeout: connectTimeoutSeconds,
      idle_timeout: 0,
      onnotice: () => {},
      fetch_types: false,
      // By this name commands see that a server is running (transfer.ts).
      connection: { application_name: "clipslot-server" },
    });
  }

  async function subscribe(): Promise<void> {
    await client.listen(CHANNEL, receive, () => {
      heardAt = performance.now();
      hear?.onGap();
    });
  }

  async function send(): Promise<void> {
    const messages: BusMessage[] = [
      ...revocations,
      ...[...changes].map(([userId, seq]) => ({ kind: "changes", userId, seq }) as const),
    ];
    changes = new Map();
    revocations = [];
    try {
      // postgres.js may never settle a query whose connection was killed as it was handed over.
      for (const payload of payloads(messages)) await withinDeadline(client.notify(CHANNEL, payload), notifyTimeoutMs);
    } catch (error) {
      log.warn("other instances could not be told of changes; they will look for themselves", { error });
    }
  }

  /** As few payloads as fit below PostgreSQL's limit of 8,000 bytes. */
  function payloads(messages: BusMessage[]): string[] {
    const frame = JSON.stringify({ from: self, messages: [] }).length;
    const parts: string[][] = [];
    let bytes = Number.POSITIVE_INFINITY;
    for (const text of messages.map((each) => JSON.stringify(each))) {
      if (bytes + text.length + 1 > payloadBytes) {
        parts.push([]);
        bytes = frame;
      }
      parts.at(-1)?.push(text);
      bytes += text.length + 1;
    }
    return parts.map((part) => `{"from":"${self}","messages":[${part.join(",")}]}`);
  }

  function receive(payload: string): void {
    heardAt = performance.now();
    let parsed;
    try {
      parsed = envelope.safeParse(JSON.parse(payload));
    } catch {
      parsed = { success: false } as const;
    }
    if (!parsed.success) {
      log.warn("a message on the bus was not understood; another version of the server may be running");
      hear?.onGap();
    } else if (parsed.data.from !== self) {
      for (const each of parsed.data.messages) hear?.onMessage(each);
    }
  }

  function heartbeat(): void {
    if (performance.now() - heardAt > heartbeatTimeoutMs) return replace();
    client
      .notify(CHANNEL, JSON.stringify({ from: self, messages: [] }))
      .catch((error: unknown) => log.debug("a heartbeat could not be sent", { error }));
  }

  function replace(): void {
    log.warn("the bus between instances is silent; connecting again");
    heardAt = performance.now();
    const silent = client;
    client = connect();
    silent.end({ timeout: 0 }).catch((error: unknown) => log.debug("the silent connection did not close", { error }));
    subscribe().catch((error: unknown) => log.warn("the bus is not back yet", { error }));
  }
}
