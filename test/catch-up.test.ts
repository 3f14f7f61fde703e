/**
 * What a client of protocol 1 missed is sent to it: the server keeps its cursor, and a pong moves it. The raw socket
 * decides when a pong is sent, and when nothing is read any more.
 */
import { describe, expect, test } from "bun:test";
import type { Config } from "../src/config.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  historyPush,
  randomBlob,
  startTestServer,
  TestSocket,
  within,
  type DatabaseKind,
  type Message,
  type TestServer,
} from "./harness.ts";
import { RawSocket } from "./raw-socket.ts";

const WINDOW = 32;

describe.each([...DATABASES])("a device of protocol 1 catches up, on %s", (database) => {
  test("[R2] a new device starts at the account's current seq", async () => {
    await using world = await writerAndReader(database);
    await pushMany(world.writer, 3);
    const fresh = await createDevice(world.server, world.account);
    await using raw = await RawSocket.open(world.server, fresh.token);
    await raw.settle();
    expect(raw.untaken).toEqual([]);
    const [next] = await pushMany(world.writer, 1);
    expect(await raw.nextMessage()).toMatchObject({ type: "history_new", id: next });
  });

  test("[R2] what it missed comes oldest first, 32 at a time, each time followed by a ping with the seq", async () => {
    await using world = await writerAndReader(database);
    const missed = await pushMany(world.writer, 2 * WINDOW + 6);
    await using raw = await RawSocket.open(world.server, world.reader.token);
    for (const size of [WINDOW, WINDOW, 6]) {
      const messages = await takeMessages(raw, size);
      expect(messages.map(({ id }) => id)).toEqual(missed.splice(0, size));
      await raw.settle();
      const ping = await raw.nextPing();
      expect(ping).toBe(String(messages.at(-1)?.["seq"]));
      expect(raw.untaken).toEqual([]);
      raw.pong(ping);
    }
    await raw.settle();
    expect(raw.untaken).toEqual([]);
  });

  test("[R2] what was not confirmed comes again; what was confirmed does not", async () => {
    await using world = await writerAndReader(database);
    const missed = await pushMany(world.writer, WINDOW + 8);
    const first = await RawSocket.open(world.server, world.reader.token);
    await takeMessages(first, WINDOW);
    await leave(first);

    const second = await RawSocket.open(world.server, world.reader.token);
    expect((await takeMessages(second, WINDOW)).map(({ id }) => id)).toEqual(missed.slice(0, WINDOW));
    second.pong(await second.nextPing());
    await takeMessages(second, 8);
    await leave(second);

    await using third = await RawSocket.open(world.server, world.reader.token);
    expect((await takeMessages(third, 8)).map(({ id }) => id)).toEqual(missed.slice(WINDOW));
    third.pong(await third.nextPing());
    await third.settle();
    expect(third.untaken).toEqual([]);
  });

  test("[R2] a pong that answers no ping, or an older one, confirms nothing", async () => {
    await using world = await writerAndReader(database);
    await pushMany(world.writer, WINDOW + 1);
    await using raw = await RawSocket.open(world.server, world.reader.token);
    const messages = await takeMessages(raw, WINDOW);
    await raw.nextPing();
    for (const payload of ["", "0", String(messages[0]?.["seq"]), "999999", "x"]) raw.pong(payload);
    await raw.settle();
    expect(raw.untaken).toEqual([]);
  });

  test("[R2] what is confirmed outlives a restart of the server", async () => {
    await using world = await writerAndReader(database);
    await pushMany(world.writer, 5);
    const raw = await RawSocket.open(world.server, world.reader.token);
    await takeMessages(raw, 5);
    raw.pong(await raw.nextPing());
    await raw.settle();
    await leave(raw);
    await world.server.restart();

    const writer = await TestSocket.open(world.server, world.writerDevice.token);
    const [next] = await pushMany(writer, 1);
    await using again = await RawSocket.open(world.server, world.reader.token);
    expect(await again.nextMessage()).toMatchObject({ id: next });
  });

  test("[R2] live messages are confirmed the same way: 32 without a pong, and the rest waits", async () => {
    await using world = await writerAndReader(database);
    await using raw = await RawSocket.open(world.server, world.reader.token);
    await raw.settle();
    const ids = await pushMany(world.writer, WINDOW + 10);
    const messages: Message[] = [];
    const pings: string[] = [];
    await collect(raw, messages, pings, WINDOW);
    await raw.settle();
    expect(messages).toHaveLength(WINDOW);
    expect(raw.untaken.filter(({ kind }) => kind === "message")).toEqual([]);

    raw.pong(pings[0] ?? "");
    await collect(raw, messages, pings, WINDOW + 10, { answer: true });
    expect(messages.map(({ id }) => id)).toEqual(ids);
  });

  test("[R1] a change written over REST goes to every socket, in one order with the others", async () => {
    await using world = await writerAndReader(database);
    await using raw = await RawSocket.open(world.server, world.reader.token, { answersPings: true });
    const { token } = world.account;
    await world.server.json("PUT", "/api/sync/slots/4", { token, body: { encrypted_blob: randomBlob() } });
    await pushMany(world.writer, 1);
    const item = historyPush(randomBlob());
    await world.server.json("POST", "/api/sync/history", { token, body: item, status: 201 });
    await world.server.json("DELETE", `/api/sync/history/${item.id}`, { token, status: 204 });
    await world.server.json("DELETE", "/api/sync/slots/4", { token, status: 204 });
    const messages = await takeMessages(raw, 5);
    expect(messages.map(({ type }) => type)).toEqual([
      "slot_updated",
      "history_new",
      "history_new",
      "history_deleted",
      "slot_cleared",
    ]);
    expect(messages.map(({ seq }) => seq)).toEqual(messages.map((_, index) => Number(messages[0]?.["seq"]) + index));
    expect(messages[3]).toEqual({ type: "history_deleted", id: item.id, seq: expect.any(Number) });
    expect(messages[4]).toMatchObject({
      slot_number: 4,
      cleared_by: "00000000-0000-0000-0000-000000000000",
      timestamp: expect.any(Number),
    });
  });

  test("[R3] no gap and no reordering where replay meets live, however often it is cut", async () => {
    await using world = await writerAndReader(database);
    const total = 400;
    const writing = pushMany(world.writer, total, { paced: true });
    const seen = new Set<string>();
    // Each connection is cut a little later than the one before, in the middle of whatever it was being sent.
    for (let cut = 7; seen.size < total; cut += 13) await readAWhile(world, cut, seen, total);
    expect([...seen]).toEqual(await writing);
  });

  test("[R3] sockets of both protocols that open in a storm of writes hear every change once, in order", async () => {
    await using world = await writerAndReader(database);
    const total = 300;
    const readers = await Promise.all(Array.from({ length: 6 }, () => createDevice(world.server, world.account)));
    const writing = pushMany(world.writer, total, { paced: true });
    const heard = await Promise.all(
      readers.map(async (device, index) => {
        await world.server.json("GET", "/api/sync/history?limit=1", { token: device.token });
        const query = index % 2 === 0 ? "" : "&protocol=2";
        await using raw = await RawSocket.open(world.server, device.token, { query, answersPings: true });
        const ids: string[] = [];
        while (ids.length < total) {
          const event = await raw.next();
          if (event.kind === "message" && event.message.type === "history_new") ids.push(event.message["id"]);
        }
        return ids;
      }),
    );
    const ids = await writing;
    for (const list of heard) expect(list).toEqual(ids);
  });

  test("[R3] the first socket of an account, opened between writes that no socket made, misses none", async () => {
    await using world = await writerAndReader(database);
    await world.writer.close();
    const { server, account } = world;
    const [writers, each] = [4, 60];
    const posted = Promise.all(Array.from({ length: writers }, () => postMany(server, account.token, each)));
    const seen = new Set<string>();
    while (seen.size < writers * each) await readAWhile(world, 6, seen, writers * each);
    expect([...seen].toSorted()).toEqual((await posted).flat().toSorted());
  }, 20_000);

  test("[R5] a client that leaves a ping unanswered is closed, and gets everything when it returns", async () => {
    await using world = await writerAndReader(database, (config) => ({
      ...config,
      relay: { ...config.relay, confirmTimeoutMs: 200, sweepIntervalMs: 20 },
    }));
    const missed = await pushMany(world.writer, WINDOW + 1);
    await using raw = await RawSocket.open(world.server, world.reader.token);
    await takeMessages(raw, WINDOW);
    await raw.nextPing();
    expect(await raw.next()).toEqual({ kind: "close", code: 1008 });
    await within(raw.ended, "the server to let go");

    await using again = await RawSocket.open(world.server, world.reader.token, { answersPings: true });
    const messages: Message[] = [];
    await collect(again, messages, [], missed.length);
    expect(messages.map(({ id }) => id)).toEqual(missed);
  });

  test("[R5] a reader that is slow, and goes on reading, is not cut", async () => {
    await using world = await writerAndReader(database, (config) => ({
      ...config,
      relay: { ...config.relay, confirmTimeoutMs: 1_000, sweepIntervalMs: 20 },
    }));
    const missed = await pushMany(world.writer, 25, { bytes: 700_000, paced: true });
    await using raw = await RawSocket.open(world.server, world.reader.token, { answersPings: true });
    // Slower than the pong of a ping that stands behind all that was sent before it.
    raw.slowDown(1_000_000, 160);
    expect((await takeMessages(raw, missed.length)).map(({ id }) => id)).toEqual(missed);
  }, 20_000);

  test("[R5] a slow reader is not cut for what a server of small clips sends it at once", async () => {
    await using world = await writerAndReader(database, undefined, { MAX_BLOB_BYTES: "65536" });
    const missed = await pushMany(world.writer, 250, { bytes: 45_000, paced: true });
    await using raw = await RawSocket.open(world.server, world.reader.token, { query: "&protocol=2" });
    raw.slowDown(2_000_000, 100);
    const caughtUp: string[] = [];
    await raw.messageWhere((message) => {
      if (message.type === "history_new") caughtUp.push(message["id"]);
      return message.type === "sync_complete";
    });
    expect(caughtUp).toEqual(missed);
  }, 20_000);

  test("[R5] a client of protocol 2 that reads nothing of what waits for it is cut", async () => {
    await using world = await writerAndReader(database, (config) => ({
      ...config,
      socketBufferBytes: 2 ** 28, // so that it is not its buffer that ends it
      relay: { ...config.relay, confirmTimeoutMs: 500, sweepIntervalMs: 20 },
    }));
    await using raw = await RawSocket.open(world.server, world.reader.token, { query: "&protocol=2" });
    await raw.messageWhere(({ type }) => type === "sync_complete");
    raw.pause();
    await pushMany(world.writer, 25, { bytes: 700_000, paced: true });
    await untilDisconnected(world.server, world.account.token, world.reader.id);
  }, 20_000);

  test("[R5] a reader that stalls is cut once its buffer is full, and catches up when it returns", async () => {
    await using world = await writerAndReader(database);
    await using raw = await RawSocket.open(world.server, world.reader.token, { query: "&protocol=2" });
    const { cursor } = await raw.messageWhere(({ type }) => type === "sync_complete");
    raw.pause();
    // More than the kernel and the server's buffer take together.
    const ids = await pushMany(world.writer, 40, { bytes: 700_000, paced: true });
    await untilDisconnected(world.server, world.account.token, world.reader.id);
    raw.resume();
    await within(raw.ended, "the cut");

    await using again = await RawSocket.open(world.server, world.reader.token, {
      query: `&protocol=2&cursor=${cursor}`,
    });
    const caughtUp: string[] = [];
    await again.messageWhere((message) => {
      if (message.type === "history_new") caughtUp.push(message["id"]);
      return message.type === "sync_complete";
    });
    expect(caughtUp).toEqual(ids);
  }, 20_000);

  test("[R6] sockets of a removed device, of a changed password and of a token past its time close with 4401", async () => {
    await using world = await writerAndReader(database, (config) => ({
      ...config,
      auth: { ...config.auth, deviceTokenSeconds: 4 },
    }));
    const { server, account } = world;
    const { token } = account;
    const removed = await TestSocket.open(server, world.reader.token);
    const soon = Date.now() + 1_000;
    await server.json("DELETE", `/api/auth/device/${world.reader.id}`, { token, status: 204 });
    expect(await removed.closed).toMatchObject({ code: 4401 });
    expect(Date.now()).toBeLessThan(soon);

    const device = await createDevice(server, account);
    const tokenEnds = Date.now() + 4_000;
    const outliving = await TestSocket.open(server, device.token, "&protocol=2");
    expect(await outliving.closed).toMatchObject({ code: 4401 });
    expect(Date.now()).toBeWithin(tokenEnds - 1_000, tokenEnds + 1_000);

    const passwordChanged = await TestSocket.open(server, (await createDevice(server, account)).token);
    const body = { current_password: account.password, new_password: "another password" };
    await server.json("POST", "/api/auth/password", { token, body });
    expect(await passwordChanged.closed).toMatchObject({ code: 4401 });
  }, 20_000);

  test("[W9] eight writers on one account: a reader that polls the changes never misses one", async () => {
    await using world = await writerAndReader(database);
    const { token } = world.account;
    const [writers, each] = [8, 60];
    let writing = true;
    const pushed = Promise.all(
      Array.from({ length: writers }, async (_, index) => {
        const device = await createDevice(world.server, world.account);
        const socket = await TestSocket.open(world.server, device.token);
        // Half of them over REST: both ways must meet in one order.
        const ids = index % 2 === 0 ? await pushMany(socket, each) : await postMany(world.server, device.token, each);
        await socket.close();
        return ids;
      }),
    ).finally(() => (writing = false));
    const seen: string[] = [];
    let lastSeq = 0;
    let { cursor } = await world.server.json("GET", "/api/sync/changes", { token });
    for (let last = false; !last;) {
      last = !writing;
      const page = await world.server.json("GET", `/api/sync/changes?cursor=${cursor}&limit=7`, { token });
      for (const change of page.changes) {
        expect(change.seq).toBeGreaterThan(lastSeq);
        lastSeq = change.seq;
        seen.push(change.id);
      }
      cursor = page.cursor;
      if (page.has_more) last = false;
    }
    expect(seen.toSorted()).toEqual((await pushed).flat().toSorted());
  }, 30_000);
});

async function writerAndReader(
  database: DatabaseKind,
  adjust: (config: Config) => Config = (config) => config,
  env: Record<string, string> = {},
) {
  const server = await startTestServer({ database, adjust, env });
  const account = await createAccount(server);
  const [writerDevice, reader] = [await createDevice(server, account), await createDevice(server, account)];
  const writer = await TestSocket.open(server, writerDevice.token);
  return { server, account, writer, writerDevice, reader, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/**
 * Pushes history items and waits until all are acknowledged.
 *
 * @param options paced: each one only when the one before was acknowledged
 * @returns the ids in order
 */
async function pushMany(socket: TestSocket, count: number, { bytes = 48, paced = false } = {}): Promise<string[]> {
  const pushes = Array.from({ length: count }, () => historyPush(randomBlob(bytes)));
  for (const push of pushes) {
    if (paced) await socket.sendForAnswer(push);
    else socket.send({ ...push, ref: push.id });
  }
  const last = pushes.at(-1)?.id;
  if (!paced) expect(await socket.nextWhere(({ ref }) => ref === last)).toMatchObject({ result: "applied" });
  expect(socket.received.filter(({ type }) => type === "error")).toEqual([]);
  return pushes.map(({ id }) => id);
}

async function postMany(server: TestServer, token: string, count: number): Promise<string[]> {
  const ids: string[] = [];
  while (ids.length < count) {
    const item = historyPush(randomBlob());
    await server.json("POST", "/api/sync/history", { token, body: item, status: 201 });
    ids.push(item.id);
  }
  return ids;
}

/** The next `count` messages; pings before the last of them fail the test unless the socket answers them itself. */
async function takeMessages(raw: RawSocket, count: number): Promise<Message[]> {
  const messages: Message[] = [];
  while (messages.length < count) {
    const event = await raw.next();
    if (event.kind === "message") messages.push(event.message);
    else if (event.kind === "close") throw new Error(`closed with ${event.code} after ${messages.length} messages`);
  }
  return messages;
}

async function collect(
  raw: RawSocket,
  messages: Message[],
  pings: string[],
  until: number,
  { answer = false } = {},
): Promise<void> {
  while (messages.length < until) {
    const event = await raw.next();
    if (event.kind === "message") messages.push(event.message);
    if (event.kind !== "ping") continue;
    pings.push(event.payload);
    if (answer) raw.pong(event.payload);
  }
}

/**
 * Connects, reads `count` messages (or until all are seen), and is cut off. What came, and may have been confirmed, by
 * then is in seq order, and nothing twice.
 */
async function readAWhile(
  { server, reader }: { server: TestServer; reader: { token: string } },
  count: number,
  seen: Set<string>,
  total: number,
): Promise<void> {
  const raw = await RawSocket.open(server, reader.token, { answersPings: true });
  const known = new Set(seen);
  for (let read = 0; read < count && known.size < total;) {
    const event = await raw.next();
    if (event.kind !== "message") continue;
    known.add(event.message["id"]);
    read += 1;
  }
  await leave(raw);
  const messages = raw.events.flatMap((event) => (event.kind === "message" ? [event.message] : []));
  for (const { id } of messages as unknown as { id: string }[]) seen.add(id);
  const seqs = messages.map(({ seq }) => seq);
  expect(seqs).toEqual([...new Set(seqs)].toSorted((left, right) => left - right));
}

async function leave(raw: RawSocket): Promise<void> {
  raw.destroy();
  await raw.ended;
}

/** The device's list says so; asking again is what a person would do, too. */
async function untilDisconnected(server: TestServer, token: string, deviceId: string): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (Date.now() < deadline) {
    const devices: { id: string; connected: boolean }[] = await server.json("GET", "/api/auth/devices", { token });
    if (devices.find(({ id }) => id === deviceId)?.connected === false) return;
  }
  throw new Error("the stalled socket was not cut");
}
