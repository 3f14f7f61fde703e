/**
 * A device of protocol 1, as the shipped client is: it applies every slot_updated in the order of arrival whatever it
 * says, knows no seq, no cursor and no answer, and ignores what it does not know. When its connection broke it sends
 * once more what it had last sent of each slot, and the items it had pushed, with the same timestamps and ids: they may
 * not have arrived. If it has been sent another content of the slot since, it leaves it at that, or shows and sends its
 * own again, or (`blindly`) sends its own and goes on showing the other.
 */
import type { Message } from "../harness.ts";
import type { Proxy } from "../proxy.ts";
import { below, type Random, type Resending } from "./schedule.ts";
import { ask, type World } from "./world.ts";

type SlotUpdate = { type: "slot_update"; slot_number: number; encrypted_blob: string; timestamp: number };
type HistoryPush = { type: "history_push"; id: string; encrypted_blob: string; content_hash: string };

export interface OldDeviceOptions {
  proxy: Proxy;
  token: string;
  now: () => number;
  random: Random;
  resends: Resending;
}

export type OldDevice = Awaited<ReturnType<typeof startOldDevice>>;

export async function startOldDevice(
  world: World,
  name: string,
  { proxy, token, now, random, resends }: OldDeviceOptions,
) {
  const slots = new Map<number, string>();
  const history = new Set<string>();
  /** By what they write. `sent`: on this connection; `unsent`: to be sent when the next one opens. */
  let sent = new Map<string, SlotUpdate | HistoryPush>();
  let unsent = new Map<string, SlotUpdate | HistoryPush>();
  let socket: WebSocket | undefined;
  let isOpen = false;
  let over = false;
  let breaks = 0;
  let wake = () => {};
  const answers = new Map<string, (answered: boolean) => void>();

  // An app start reads over REST what stands; from then on the socket must bring everything.
  const stored = await ask(world.host.url, "GET", "/api/sync/slots", { token });
  for (const slot of stored.body) slots.set(slot.slot_number, slot.encrypted_blob);
  const items = await ask(world.host.url, "GET", "/api/sync/history?limit=1000", { token });
  for (const item of items.body) history.add(item.id);
  connect();

  return {
    kind: "old" as const,
    name,
    proxy,
    slots,
    history,
    get isConnected() {
      return isOpen;
    },
    /** How often its connection broke: a quiet time is one in which this stays the same. */
    get breaks() {
      return breaks;
    },
    set(slotNumber: number, blob: string) {
      slots.set(slotNumber, blob);
      submit(`slot ${slotNumber}`, {
        type: "slot_update",
        slot_number: slotNumber,
        encrypted_blob: blob,
        timestamp: now(),
      });
    },
    push(id: string, blob: string, contentHash: string) {
      history.add(id);
      submit(id, { type: "history_push", id, encrypted_blob: blob, content_hash: contentHash });
    },
    /** Sends something that is answered after everything before it. @returns false when the connection broke first */
    settle(message: Record<string, unknown>): Promise<boolean> {
      if (!isOpen) return Promise.resolve(false);
      const ref = crypto.randomUUID();
      const { promise, resolve } = Promise.withResolvers<boolean>();
      answers.set(ref, resolve);
      socket?.send(JSON.stringify({ ...message, ref }));
      return promise;
    },
    /** Resolves the next time anything happens to it. */
    changed: (): Promise<void> => new Promise((resolve) => (wake = resolve)),
    async stop() {
      over = true;
      socket?.close();
    },
  };

  function submit(key: string, message: SlotUpdate | HistoryPush): void {
    if (!isOpen) {
      unsent.set(key, message);
      return;
    }
    sent.set(key, message);
    socket?.send(JSON.stringify(message));
  }

  function connect(): void {
    if (over) return;
    const opening = new WebSocket(`${proxy.url.replace("http", "ws")}/api/sync/ws?token=${token}`);
    socket = opening;
    opening.onopen = () => {
      isOpen = true;
      world.note(`${name} is connected`);
      const again = unsent;
      unsent = new Map();
      for (const [key, message] of again) {
        if (message.type === "slot_update" && slots.get(message.slot_number) !== message.encrypted_blob) {
          if (resends === "never") continue;
          if (resends === "with its own shown") slots.set(message.slot_number, message.encrypted_blob);
        }
        sent.set(key, message);
        opening.send(JSON.stringify(message));
      }
      wake();
    };
    opening.onmessage = ({ data }) => {
      receive(JSON.parse(String(data)));
      wake();
    };
    opening.onclose = ({ code }) => {
      if (isOpen) world.note(`${name} lost its connection (${code})`);
      isOpen = false;
      breaks += 1;
      unsent = new Map([...sent, ...unsent]);
      sent = new Map();
      for (const resolve of answers.values()) resolve(false);
      answers.clear();
      wake();
      setTimeout(connect, 1 + below(random, 10));
    };
  }

  function receive(message: Message): void {
    if (message.type === "slot_updated") {
      world.note(`${name} is sent slot ${message["slot_number"]} @${message["seq"]}`);
      slots.set(message["slot_number"], message["encrypted_blob"]);
    }
    if (message.type === "history_new") history.add(message["id"]);
    const { ref } = message as { ref?: string };
    if (ref === undefined) return;
    answers.get(ref)?.(true);
    answers.delete(ref);
  }
}
