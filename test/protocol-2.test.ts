/** What newer clients ask for: their own cursor, answers to their writes, clears and deletes, and the same over REST. */
import { describe, expect, test } from "bun:test";
import { loadConfig } from "../src/config.ts";
import { openStorage } from "../src/storage/open.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  historyPush,
  randomBlob,
  slotUpdate,
  startTestServer,
  TestSocket,
  type DatabaseKind,
  type Message,
  type TestServer,
} from "./harness.ts";
import { RawSocket } from "./raw-socket.ts";

describe.each([...DATABASES])("protocol 2 on %s", (database) => {
  test("[P3] [P4] welcome comes first, then all that lives, then sync_complete, then what is new", async () => {
    await using world = await accountWithContent(database);
    const { server, account, writer, items } = world;
    const device = await createDevice(server, account);
    const socket = await TestSocket.open(server, device.token, "&protocol=2");
    const before = Date.now();
    const welcome = await socket.next();
    expect(welcome).toEqual({
      type: "welcome",
      protocol: 2,
      cursor: expect.any(String),
      server_time: expect.any(String),
      device_id: device.id,
      limits: expect.objectContaining({ slots: 10, blob_bytes: expect.any(Number), history_items: 1000 }),
    });
    expect(Math.abs(Date.parse(welcome["server_time"]) - before)).toBeLessThan(60_000);

    const caughtUp = await untilComplete(socket);
    // What was deleted or cleared before is no news to a client that starts from nothing.
    expect(caughtUp.changes.map(({ type }) => type)).toEqual(["slot_updated", "history_new"]);
    expect(caughtUp.changes[1]).toMatchObject({
      id: items.living,
      created_at: expect.stringMatching(/^\d{4}-.*\.\d{3}Z$/),
    });

    const push = historyPush(randomBlob());
    const ack = await writer.sendForAnswer(push);
    expect(await socket.next()).toMatchObject({ type: "history_new", id: push.id, seq: ack["seq"] });
    await socket.settle();
    expect(socket.received.filter(({ type }) => type === "sync_complete")).toHaveLength(1);
  });

  test("[P1] [P2] the address says which protocol, and the token may stand in three places", async () => {
    await using world = await accountWithContent(database);
    const { server, reader } = world;
    const address = `${server.url.replace("http", "ws")}/api/sync/ws?protocol=2`;
    const places = [
      { open: () => new WebSocket(address, ["clipslot", reader.token]), subprotocol: "clipslot" },
      {
        open: () => new WebSocket(address, { headers: { Authorization: `Bearer ${reader.token}` } }),
        subprotocol: "",
      },
      { open: () => new WebSocket(`${address}&token=${reader.token}`), subprotocol: "" },
    ];
    for (const { open, subprotocol } of places) {
      const socket = open();
      const { promise, resolve, reject } = Promise.withResolvers<string>();
      socket.onmessage = ({ data }) => resolve(JSON.parse(String(data)).type);
      socket.onclose = ({ code }) => reject(new Error(`closed with ${code}`));
      expect(await promise).toBe("welcome");
      expect(socket.protocol).toBe(subprotocol);
      socket.close();
    }
    const headers = {
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    };
    const answer = await server.json("GET", "/api/sync/ws?protocol=3", { token: reader.token, headers, status: 400 });
    expect(answer).toMatchObject({ code: "bad_request" });
  });

  test("[P4] with a cursor comes only what is newer, deletions and clears among it", async () => {
    await using world = await accountWithContent(database);
    const { server, writer, reader, items } = world;
    const first = await TestSocket.open(server, reader.token, "&protocol=2");
    const { cursor } = await untilComplete(first);
    await first.close();
    await writer.sendForAnswer({ type: "history_delete", id: items.living });
    await writer.sendForAnswer({ type: "slot_clear", slot_number: 1, timestamp: Date.now() + 1000 });

    const second = await TestSocket.open(server, reader.token, `&protocol=2&cursor=${cursor}`);
    expect(await second.next()).toMatchObject({ type: "welcome", cursor });
    const caughtUp = await untilComplete(second);
    expect(caughtUp.changes).toMatchObject([
      { type: "history_deleted", id: items.living },
      { type: "slot_cleared", slot_number: 1, cleared_by: world.writerDevice.id },
    ]);
    await second.close();
    const third = await TestSocket.open(server, reader.token, `&protocol=2&cursor=${caughtUp.cursor}`);
    expect((await untilComplete(third)).changes).toEqual([]);
    await third.close();
  });

  test("the list of devices counts what came with the cursor that it presented, and no more", async () => {
    await using world = await accountWithContent(database);
    const { server, account, writer } = world;
    const device = await createDevice(server, account);
    const behind = async () => {
      const devices: Message[] = await server.json("GET", "/api/auth/devices", { token: account.token });
      return devices.find(({ id }) => id === device.id)?.["behind"];
    };
    const first = await TestSocket.open(server, device.token, "&protocol=2");
    const { cursor } = await untilComplete(first);
    for (let count = 0; count < 2; count += 1) await writer.sendForAnswer(historyPush(randomBlob()));
    for (let count = 0; count < 2; count += 1) await first.nextOf("history_new");
    await first.close();
    await writer.sendForAnswer(historyPush(randomBlob()));
    await server.restart(); // writes down what is noted
    // Two were sent; nobody knows whether they arrived.
    expect(await behind()).toBe(3);

    const second = await TestSocket.open(server, device.token, `&protocol=2&cursor=${cursor}`);
    const caughtUp = await untilComplete(second);
    expect(caughtUp.changes).toHaveLength(3);
    await second.close();
    await (await TestSocket.open(server, device.token, `&protocol=2&cursor=${caughtUp.cursor}`)).close();
    await server.restart();
    expect(await behind()).toBe(0);
    // With protocol 1 it goes on from there.
    const third = await TestSocket.open(server, device.token);
    const body = { encrypted_blob: randomBlob() };
    await server.json("PUT", "/api/sync/slots/5", { token: account.token, body });
    expect(await third.next()).toMatchObject({ type: "slot_updated", slot_number: 5 });
    await third.close();
  });

  test("[P5] no pings: its cursor is its own, and an unconfirmed 33rd message comes", async () => {
    await using world = await accountWithContent(database);
    await using raw = await RawSocket.open(world.server, world.reader.token, { query: "&protocol=2" });
    for (let count = 0; count < 40; count += 1) await world.writer.sendForAnswer(historyPush(randomBlob()));
    let heard = 0;
    while (heard < 41) {
      const event = await raw.next();
      expect(event.kind).toBe("message");
      if (event.kind === "message" && event.message.type === "history_new") heard += 1;
    }
  });

  test("[P6] a ref is answered: applied, stale, duplicate, or an error with its code", async () => {
    await using world = await accountWithContent(database);
    const { writer } = world;
    const now = Date.now();
    const update = slotUpdate(2, randomBlob(), now);
    const item = historyPush(randomBlob());
    const applied = await writer.sendForAnswer(update);
    expect(applied).toEqual({ type: "ack", ref: expect.any(String), result: "applied", seq: expect.any(Number) });
    expect(await writer.sendForAnswer(update)).toMatchObject({ result: "duplicate", seq: applied["seq"] });
    expect(await writer.sendForAnswer(slotUpdate(2, randomBlob(), now - 1))).toMatchObject({
      result: "stale",
      seq: applied["seq"],
    });
    expect(await writer.sendForAnswer({ type: "slot_clear", slot_number: 2, timestamp: now - 1 })).toMatchObject({
      result: "stale",
    });
    expect(await writer.sendForAnswer({ type: "slot_clear", slot_number: 2, timestamp: now + 1 })).toMatchObject({
      result: "applied",
    });
    expect(await writer.sendForAnswer(item)).toMatchObject({ result: "applied" });
    expect(await writer.sendForAnswer(item)).toMatchObject({ result: "duplicate" });
    const deleted = await writer.sendForAnswer({ type: "history_delete", id: item.id });
    expect(deleted).toMatchObject({ result: "applied" });
    expect(await writer.sendForAnswer({ type: "history_delete", id: item.id })).toMatchObject({
      result: "duplicate",
      seq: deleted["seq"],
    });
    expect(await writer.sendForAnswer(item)).toMatchObject({ result: "stale", seq: deleted["seq"] });

    const unknown = await writer.sendForAnswer({ type: "history_delete", id: crypto.randomUUID() });
    expect(unknown).toEqual({ type: "error", ref: expect.any(String), code: "not_found", message: expect.any(String) });
    expect(await writer.sendForAnswer({ type: "slot_update", slot_number: 11 })).toMatchObject({
      type: "error",
      code: "bad_request",
    });
    expect(await writer.sendForAnswer({ type: "tea" })).toMatchObject({ type: "error", code: "bad_request" });
  });

  test("[P6] without a ref a write has no answer but [W6]", async () => {
    await using world = await accountWithContent(database);
    const { writer } = world;
    const received = writer.received.length;
    writer.send(slotUpdate(3, randomBlob(), 2_000));
    writer.send(slotUpdate(3, randomBlob(), 1_000));
    expect(await writer.next()).toMatchObject({ type: "slot_updated", slot_number: 3, timestamp: 2_000 });
    expect(writer.received).toHaveLength(received + 1);
  });

  test("[P7] base_seq that still stands wins whatever the clocks say; one that does not is no help", async () => {
    await using world = await accountWithContent(database);
    const { writer, server, account } = world;
    const ahead = Date.now() + 50_000;
    const stands = await writer.sendForAnswer(slotUpdate(4, randomBlob(), ahead));
    const late = { ...slotUpdate(4, randomBlob(), 1_000), base_seq: stands["seq"] };
    expect(await writer.sendForAnswer(late)).toMatchObject({ result: "applied" });
    const slots = await server.json("GET", "/api/sync/slots", { token: account.token });
    const slot = slots.find(({ slot_number }: { slot_number: number }) => slot_number === 4);
    expect(slot).toMatchObject({ encrypted_blob: late.encrypted_blob, updated_at: new Date(ahead + 1).toISOString() });
    expect(await writer.sendForAnswer({ ...late, encrypted_blob: randomBlob() })).toMatchObject({
      result: "stale",
      seq: slot.seq,
    });
    const clear = { type: "slot_clear", slot_number: 4, timestamp: 1_000, base_seq: slot.seq };
    expect(await writer.sendForAnswer(clear)).toMatchObject({ result: "applied" });
  });

  test("[P5] [W6] the winner keeps its place in the stream, also while the loser catches up", async () => {
    await using world = await accountWithContent(database);
    const { server, account, reader, writer } = world;
    for (let count = 0; count < 30; count += 1) await writer.sendForAnswer(historyPush(randomBlob(700_000)));
    const winner = slotUpdate(5, randomBlob(), 5_000);
    const { seq } = await writer.sendForAnswer(winner);

    await using raw = await RawSocket.open(server, reader.token, { query: "&protocol=2" });
    raw.pause();
    raw.send({ ...slotUpdate(5, randomBlob(), 4_000), ref: "late" });
    for (let turn = 0; turn < 5; turn += 1) await server.json("GET", "/api/sync/slots", { token: account.token });
    raw.resume();
    const seqs: number[] = [];
    let winners = 0;
    await raw.messageWhere((message) => {
      if (message.type === "slot_updated" || message.type === "history_new") seqs.push(message["seq"]);
      if (message["encrypted_blob"] === winner.encrypted_blob) winners += 1;
      return message.type === "sync_complete";
    });
    expect(seqs).toEqual(seqs.toSorted((left, right) => left - right));
    expect(seqs).toContain(seq);
    expect(winners).toBeGreaterThanOrEqual(1);
  }, 20_000);

  test("[P8] resync_required says why, over the socket with close code 4410 and over REST with 410", async () => {
    await using world = await accountWithContent(database);
    const { server, account, reader, writer, items } = world;
    const { cursor } = await server.json("GET", "/api/sync/changes", { token: account.token });
    const [epoch = "", seq = ""] = cursor.split("-");
    const stranger = await createAccount(server);
    const young = await server.json("GET", "/api/sync/changes", { token: stranger.token });
    await writer.sendForAnswer({ type: "history_delete", id: items.living });
    await forgetTombstones(server, account.userId);

    const cases = {
      unknown_cursor: ["nonsense", "zz", `${epoch}-`, `${cursor}-1-1`, "-1"],
      other_epoch: [`0123456789abcdef-${seq}`],
      ahead: [`${epoch}-zzzzz`],
      // Of before the deletion that is no longer remembered; also one that another account could use.
      too_old: [cursor, young.cursor],
    };
    for (const [reason, cursors] of Object.entries(cases)) {
      for (const text of cursors) {
        const socket = await TestSocket.open(server, reader.token, `&protocol=2&cursor=${text}`);
        expect(await socket.nextOf("resync_required")).toEqual({ type: "resync_required", reason });
        expect(await socket.closed).toMatchObject({ code: 4410 });
        const body = await server.json("GET", `/api/sync/changes?cursor=${text}`, {
          token: account.token,
          status: 410,
        });
        expect(body).toEqual({ error: expect.any(String), code: "resync_required", reason });
      }
    }
    const over = await TestSocket.open(server, reader.token, "&protocol=2");
    expect((await untilComplete(over)).changes.map(({ type }) => type)).toEqual(["slot_updated"]);
    await over.close();
  });

  test("[P10] GET changes speaks the socket's objects, pages, and shares its cursors", async () => {
    await using world = await accountWithContent(database);
    const { server, account, reader, writer } = world;
    const { token } = account;
    for (let count = 0; count < 5; count += 1) await writer.sendForAnswer(historyPush(randomBlob()));
    const onSocket = await TestSocket.open(server, reader.token, "&protocol=2");
    const caughtUp = await untilComplete(onSocket);
    await onSocket.close();

    const changes: Message[] = [];
    let cursor = "";
    for (let more = true; more;) {
      const page = await server.json("GET", `/api/sync/changes?limit=3${cursor}`, { token });
      expect(page.changes.length).toBeLessThanOrEqual(3);
      changes.push(...page.changes);
      cursor = `&cursor=${page.cursor}`;
      more = page.has_more;
    }
    expect(changes).toEqual(caughtUp.changes);
    expect(cursor).toBe(`&cursor=${caughtUp.cursor}`);

    await writer.sendForAnswer({ type: "slot_clear", slot_number: 1, timestamp: Date.now() + 1000 });
    const socket = await TestSocket.open(server, reader.token, `&protocol=2${cursor}`);
    const rest = await server.json("GET", `/api/sync/changes?${cursor}`, { token });
    expect((await untilComplete(socket)).changes).toEqual(rest.changes);
    await socket.close();
    for (const limit of ["0", "1001", "-1", "x", "1.5"]) {
      await server.json("GET", `/api/sync/changes?limit=${limit}`, { token, status: 400 });
    }
  });

  test("[P4] [P10] a first reading in pages tells of what is deleted while it reads", async () => {
    await using world = await accountWithContent(database);
    const { server, account, writer, items } = world;
    const { token } = account;
    for (let count = 0; count < 3; count += 1) await writer.sendForAnswer(historyPush(randomBlob()));
    const half = await server.json("GET", "/api/sync/changes?limit=2", { token });
    expect(half).toMatchObject({
      has_more: true,
      changes: [{ type: "slot_updated" }, { type: "history_new", id: items.living }],
    });
    await writer.sendForAnswer({ type: "history_delete", id: items.living });
    const rest = await server.json("GET", `/api/sync/changes?limit=100&cursor=${encodeURIComponent(half.cursor)}`, {
      token,
    });
    expect(rest.changes.at(-1)).toMatchObject({ type: "history_deleted", id: items.living });
    expect(rest.changes.filter(({ type }: Message) => type === "history_deleted")).toHaveLength(1);
  });

  test("[H1] history pages by key: nothing that comes or goes meanwhile shifts them, and Link leads on", async () => {
    await using world = await accountWithContent(database);
    const { server, account } = world;
    const { token } = account;
    const ids = [world.items.living];
    for (let count = 0; count < 9; count += 1) {
      // Three of them at the same moment: the id decides.
      const item = {
        ...historyPush(randomBlob()),
        created_at: new Date(Date.now() - 1000 * Math.floor(count / 3)).toISOString(),
      };
      await server.json("POST", "/api/sync/history", { token, body: item, status: 201 });
      ids.push(item.id);
    }
    const seen: string[] = [];
    let path: string | undefined = "/api/sync/history?limit=3";
    while (path !== undefined) {
      const response = await server.request("GET", path, { token });
      const page: { id: string; created_at: string }[] = (await response.json()) as {
        id: string;
        created_at: string;
      }[];
      seen.push(...page.map(({ id }) => id));
      path = /^<([^>]+)>; rel="next"$/.exec(response.headers.get("Link") ?? "")?.[1];
      const newest = { ...historyPush(randomBlob()), created_at: new Date(Date.now() + 1000).toISOString() };
      await server.json("POST", "/api/sync/history", { token, body: newest, status: 201 });
    }
    expect(seen.toSorted()).toEqual(ids.toSorted());
    const all = await server.json("GET", "/api/sync/history?limit=100", { token });
    expect(seen).toEqual(all.map(({ id }: { id: string }) => id).filter((id: string) => ids.includes(id)));
    const offset = await server.json("GET", "/api/sync/history?limit=2&offset=1", { token });
    expect(offset).toEqual(all.slice(1, 3));
    await server.json("GET", "/api/sync/history?before=nonsense", { token, status: 400 });
  });
});

/** One slot, one living and one deleted item, a cleared slot; a writer and a reader. */
async function accountWithContent(database: DatabaseKind) {
  const server = await startTestServer({ database });
  const account = await createAccount(server);
  const [writerDevice, reader] = [await createDevice(server, account), await createDevice(server, account)];
  const writer = await TestSocket.open(server, writerDevice.token, "&protocol=2");
  await untilComplete(writer);
  const [living, dead] = [historyPush(randomBlob()), historyPush(randomBlob())];
  await writer.sendForAnswer(slotUpdate(1, randomBlob()));
  await writer.sendForAnswer(slotUpdate(9, randomBlob(), 1_000));
  await writer.sendForAnswer(living);
  await writer.sendForAnswer(dead);
  await writer.sendForAnswer({ type: "history_delete", id: dead.id });
  await writer.sendForAnswer({ type: "slot_clear", slot_number: 9, timestamp: 2_000 });
  return {
    server,
    account,
    writer,
    writerDevice,
    reader,
    items: { living: living.id, dead: dead.id },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

/** Everything up to sync_complete, without the welcome. */
async function untilComplete(socket: TestSocket): Promise<{ changes: Message[]; cursor: string }> {
  const changes: Message[] = [];
  for (;;) {
    const message = await socket.next();
    if (message.type === "sync_complete") return { changes, cursor: message["cursor"] };
    if (message.type !== "welcome") changes.push(message);
  }
}

/** As if 90 days had passed. */
async function forgetTombstones(server: TestServer, userId: string): Promise<void> {
  await server.stop();
  const storage = await openStorage(loadConfig({ DATA_DIR: server.dataDir, DATABASE_URL: server.databaseUrl }));
  await storage.retain(userId, Date.now(), { tombstonesBefore: Date.now() + 60_000, tombstones: 100, limit: 100 });
  await storage.close();
  await server.restart();
}
