/** What the fuzzer sends: calls and messages of the contract, and mutations of their text. All from one seed. */
import { randomBlob } from "./harness.ts";

/** What earlier answers gave away, to be used again. */
export interface Known {
  tokens: string[];
  ids: string[];
  emails: string[];
  cursors: string[];
  codes: string[];
}

export interface Random {
  /** 0 ≤ x < bound, whole. */
  below(bound: number): number;
  chance(probability: number): boolean;
  pick<Item>(items: readonly Item[]): Item;
}

/** mulberry32, a generator of one 32-bit state: small, and the same on every machine. */
export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (bound: number) => Math.floor(next() * bound);
  return {
    below,
    chance: (probability) => next() < probability,
    pick(items) {
      const item = items[below(items.length)];
      if (item === undefined) throw new Error("there is nothing to pick from");
      return item;
    },
  };
}

/** Values that break things. */
const ODD = [
  "0", "-0", "-1", "1.5", "1e999", "9007199254740993", "null", "true", "[]", "{}", '""', '"\\u0000"', '"\\ud800"',
  '"__proto__"', '{"__proto__":{}}', '"constructor"', "[[[[[[[[]]]]]]]]", '"\u202e"', '"💥"', `"${"A".repeat(300)}"`,
  "NaN", "'x'", "", '"QQ"', '"_-8="', '"2024-13-01T00:00:00Z"', '"00000000-0000-0000-0000-000000000000"',
]; // prettier-ignore

export interface Mutator {
  /** The text as it is, most of the time; otherwise a few changes to it. */
  (text: string): string;
  /** As above, for an address. */
  path(path: string): string;
}

export function createMutator(random: Random): Mutator {
  const changes: ((text: string) => string)[] = [
    (text) => text.slice(0, random.below(text.length + 1)),
    (text) => splice(text, random.below(text.length + 1), 1, ""),
    (text) => splice(text, random.below(text.length + 1), 0, String.fromCharCode(random.below(0x300))),
    (text) =>
      splice(text, random.below(text.length + 1), 1, random.pick(['"', "{", "}", "[", "]", ",", ":", "\\", "\0"])),
    (text) => text + text,
    (text) => text.replace(/:("[^"]*"|-?\d+)/, () => `:${random.pick(ODD)}`),
    (text) => replaceNth(text, /"[^"]*"|-?\d+/g, random, () => random.pick(ODD)),
    (text) => replaceNth(text, /"[a-z_]+":/g, random, (name) => `${name}1,${name}`),
    (text) => `${"[".repeat(random.below(100))}${text}`,
    (text) => text.replaceAll(/\d+/g, (digits) => (random.chance(0.3) ? `${digits}${random.below(10)}` : digits)),
  ];
  const mutate = (text: string): string => {
    if (random.chance(0.6)) return text;
    let mutated = text;
    for (let count = 1 + random.below(3); count > 0; count -= 1) mutated = random.pick(changes)(mutated);
    return mutated;
  };
  const path = (text: string): string => {
    if (random.chance(0.85)) return text;
    const changed = random
      .pick(changes)(text.slice(1))
      .replaceAll(/[^!-~]|#/g, (character) => encodeURIComponent(character.isWellFormed() ? character : "?"));
    return `/${changed.slice(0, 4_000)}`;
  };
  return Object.assign(mutate, { path });
}

export function createTraffic(random: Random, known: Known) {
  const blob = () => randomBlob(random.chance(0.05) ? 5_000 : 24 + random.below(100));
  const id = () => (known.ids.length > 0 && random.chance(0.6) ? random.pick(known.ids) : learnId(crypto.randomUUID()));
  const hash = () => `hash-${random.below(200)}`;
  const timestamp = () => Date.now() + random.below(200_000) - 100_000;
  const slotNumber = () => 1 + random.below(10);
  const item = () => ({ id: id(), encrypted_blob: blob(), content_hash: hash() });
  const email = () => random.pick(known.emails);
  const password = () => (random.chance(0.9) ? "fuzz password" : "wrong password");
  const cursor = () => (known.cursors.length > 0 ? random.pick(known.cursors) : "0123456789abcdef-0");

  const calls: (() => { method: string; path: string; body?: unknown })[] = [
    () => ({
      method: "PUT",
      path: `/api/sync/slots/${slotNumber()}`,
      body: { encrypted_blob: blob(), timestamp: timestamp() },
    }),
    () => ({
      method: "PUT",
      path: `/api/sync/slots/${slotNumber()}`,
      body: { encrypted_blob: blob(), base_seq: random.below(99) },
    }),
    () => ({ method: "DELETE", path: `/api/sync/slots/${slotNumber()}` }),
    () => ({ method: "GET", path: "/api/sync/slots" }),
    () => ({ method: "POST", path: "/api/sync/history", body: item() }),
    () => ({ method: "POST", path: "/api/sync/history", body: Array.from({ length: random.below(10) }, item) }),
    () => ({
      method: "POST",
      path: "/api/sync/history",
      body: { ...item(), expires_at: new Date(timestamp()).toISOString() },
    }),
    () => ({ method: "GET", path: `/api/sync/history?limit=${random.below(60)}&offset=${random.below(60)}` }),
    () => ({ method: "DELETE", path: `/api/sync/history/${id()}` }),
    () => ({ method: "GET", path: `/api/sync/changes?limit=${random.below(60)}&cursor=${cursor()}` }),
    () => ({ method: "GET", path: "/api/sync/changes" }),
    () => ({ method: "GET", path: "/api/auth/account" }),
    () => ({ method: "GET", path: "/api/auth/devices" }),
    () => ({ method: "GET", path: "/api/auth/export" }),
    () => ({ method: "POST", path: "/api/auth/refresh" }),
    () => ({ method: "POST", path: "/api/auth/link-code", body: { encrypted_key: blob() } }),
    () => ({ method: "POST", path: "/api/auth/redeem-code", body: { code: known.codes.at(-1) ?? "ABCDEF" } }),
    () => ({ method: "GET", path: "/api/info" }),
    () => ({ method: "GET", path: `/api/sync/ws?token=${random.pick(known.tokens)}` }),
    () => ({ method: random.pick(["PATCH", "PUT", "DELETE", "OPTIONS", "POST"]), path: "/api/auth/devices", body: {} }),
  ];
  /** Each costs a password's hash, or ends what the others live on: seldom. */
  const dear: typeof calls = [
    () => ({ method: "POST", path: "/api/auth/login", body: { email: email(), password: password() } }),
    () => ({ method: "POST", path: "/api/auth/register", body: { email: email(), password: password() } }),
    () => ({ method: "POST", path: "/api/auth/device", body: { name: "fuzz", device_type: "linux" } }),
    () => ({ method: "DELETE", path: `/api/auth/device/${id()}` }),
    () => ({
      method: "POST",
      path: "/api/auth/password",
      body: { current_password: password(), new_password: "fuzz password" },
    }),
    () => ({ method: "DELETE", path: "/api/auth/account", body: { password: password() } }),
  ];
  const messages: (() => Record<string, unknown>)[] = [
    () => ({ type: "slot_update", slot_number: slotNumber(), encrypted_blob: blob(), timestamp: timestamp() }),
    () => ({
      type: "slot_update",
      slot_number: slotNumber(),
      encrypted_blob: blob(),
      timestamp: timestamp(),
      base_seq: random.below(99),
    }),
    () => ({ type: "slot_clear", slot_number: slotNumber(), timestamp: timestamp() }),
    () => ({ type: "history_push", ...item() }),
    () => ({ type: "history_push", ...item(), created_at: new Date(timestamp()).toISOString() }),
    () => ({ type: "history_delete", id: id() }),
    () => ({ type: "ping" }),
  ];

  return {
    call: () => random.pick(random.chance(0.03) ? dear : calls)(),
    message: () => ({
      ...random.pick(messages)(),
      ...(random.chance(0.3) ? { ref: String(random.below(1_000)) } : {}),
    }),
    /** Beside the token. */
    query: () =>
      random.pick(["", "", "&protocol=2", `&protocol=2&cursor=${cursor()}`, "&protocol=3", "&protocol=2&cursor=x"]),
    /** Remembers what an answer holds that can be sent again. */
    learn(text: string): void {
      remember(known.tokens, /"token":"([^"]+)"/.exec(text)?.[1]);
      remember(known.cursors, /"cursor":"([^"]+)"/.exec(text)?.[1]);
      remember(known.codes, /"code":"([2-9A-Z]{6})"/.exec(text)?.[1]);
      remember(known.ids, /"device_id":"([^"]+)"/.exec(text)?.[1]);
    },
  };

  function learnId(fresh: string): string {
    remember(known.ids, fresh);
    return fresh;
  }
}

/** The last few are enough. */
function remember(list: string[], item: string | undefined): void {
  if (item === undefined) return;
  list.push(item);
  if (list.length > 50) list.shift();
}

function splice(text: string, start: number, removed: number, added: string): string {
  return text.slice(0, start) + added + text.slice(start + removed);
}

function replaceNth(text: string, pattern: RegExp, random: Random, change: (found: string) => string): string {
  const found = [...text.matchAll(pattern)];
  const chosen = found[random.below(Math.max(1, found.length))];
  return chosen === undefined ? text : splice(text, chosen.index, chosen[0].length, change(chosen[0]));
}
