/**
 * A client of protocol 1 applies every slot_updated it is sent, unconditionally. These are the races in which it would
 * end with another content than the server, and who wins in the first place. The raw socket decides when a pong is sent.
 */
import { describe, expect, test } from "bun:test";
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
} from "./harness.ts";
import { RawSocket } from "./raw-socket.ts";

const WINDOW = 32;

describe.each([...DATABASES])("who wins, on %s", (database) => {
  test("[R4] a client that writes a slot before it has confirmed another device's write is sent its own, too", async () => {
    await using world = await twoDevices(database);
    const { other, blind, blindId } = world;
    other.send(slotUpdate(1, randomBlob(), Date.now() - 1000));
    await blind.nextMessage();
    const ping = await blind.nextPing();

    const own = slotUpdate(1, randomBlob());
    blind.send(own);
    expect(await blind.nextMessage()).toMatchObject({ ...own, type: "slot_updated", updated_by: blindId });
    blind.pong(ping);
  });

  test("[R4] also when the pong comes right behind the write", async () => {
    await using world = await twoDevices(database);
    const { other, blind, blindId } = world;
    other.send(slotUpdate(1, randomBlob(), Date.now() - 1000));
    await blind.nextMessage();
    const ping = await blind.nextPing();

    const own = slotUpdate(1, randomBlob());
    blind.sendTogether([own, { pong: ping }]);
    expect(await blind.nextMessage()).toMatchObject({ ...own, type: "slot_updated", updated_by: blindId });
  });

  test("[R1] [R4] once it has confirmed, its own write does not come back", async () => {
    await using world = await twoDevices(database);
    const { other, blind } = world;
    other.send(slotUpdate(1, randomBlob(), Date.now() - 1000));
    await blind.nextMessage();
    const ping = await blind.nextPing();

    const own = slotUpdate(1, randomBlob());
    blind.sendTogether([{ pong: ping }, own]);
    expect(await other.nextOf("slot_updated")).toMatchObject({ encrypted_blob: own.encrypted_blob });
    await blind.settle();
    expect(blind.untaken).toEqual([]);
  });

  test("[R4] [W3] an update whose clock is far ahead comes back: sent once more, it wins over what its sender shows", async () => {
    await using world = await twoDevices(database);
    const { other, blind, blindId } = world;
    const ahead = Date.now() + 300_000;
    const own = slotUpdate(1, randomBlob(), ahead);
    const standing = { type: "slot_updated", encrypted_blob: own.encrypted_blob, updated_by: blindId };
    blind.send(own);
    const first = await other.nextOf("slot_updated");
    expect(first).toMatchObject(standing);
    expect(Number(first["timestamp"])).toBeLessThan(ahead);
    expect(await blind.nextMessage()).toMatchObject(standing);
    blind.pong(await blind.nextPing());

    const newer = slotUpdate(1, randomBlob(), Number(first["timestamp"]) + 1);
    other.send(newer);
    expect(await blind.nextMessage()).toMatchObject({ encrypted_blob: newer.encrypted_blob });
    blind.pong(await blind.nextPing());

    blind.send(own);
    expect(await other.nextOf("slot_updated")).toMatchObject(standing);
    expect(await blind.nextMessage()).toMatchObject(standing);
  });

  test("[W6] the sender of a write that lost is sent the winner, and nobody else anything", async () => {
    await using world = await twoDevices(database);
    const { other, blind, otherId } = world;
    const now = Date.now();
    const winner = slotUpdate(1, randomBlob(), now);
    expect(await other.sendForAnswer(winner)).toMatchObject({ type: "ack", result: "applied" });
    await blind.nextMessage();
    blind.pong(await blind.nextPing());

    blind.send(slotUpdate(1, randomBlob(), now - 1));
    expect(await blind.nextMessage()).toMatchObject({ ...winner, type: "slot_updated", updated_by: otherId });
    await other.settle();
    expect(other.received.filter(({ type }) => type === "slot_updated")).toEqual([]);
  });

  test("[W6] a winner is not sent once the client has written something newer that stands", async () => {
    await using world = await twoDevices(database);
    const { other, blind } = world;
    const now = Date.now();
    other.send(slotUpdate(1, randomBlob(), now - 10));
    await blind.nextMessage();
    blind.pong(await blind.nextPing());

    // Both in one segment, and so in one commit: the first loses, the second stands.
    const standing = slotUpdate(1, randomBlob(), now);
    blind.sendTogether([slotUpdate(1, randomBlob(), now - 20), standing]);
    expect(await other.nextOf("slot_updated")).toMatchObject({ encrypted_blob: standing.encrypted_blob });
    await blind.settle();
    expect(finalSlot(blind, 1) ?? standing.encrypted_blob).toBe(standing.encrypted_blob);
  });

  test("[W6] a write that lost to an older one of the same client is answered with that one", async () => {
    await using world = await twoDevices(database);
    const { blind, blindId } = world;
    const standing = slotUpdate(1, randomBlob(), 2_000);
    blind.sendTogether([standing, slotUpdate(1, randomBlob(), 1_000)]);
    expect(await blind.nextMessage()).toMatchObject({ ...standing, type: "slot_updated", updated_by: blindId });
  });

  test("[R2] [W6] winners wait for room: never more than 32 messages are in flight", async () => {
    await using world = await twoDevices(database);
    const { other, blind } = world;
    // A quiet client is pinged at the first message: the ping stands for one, and 31 more fill the window.
    for (let slot = 1; slot <= 4; slot += 1) other.send(slotUpdate(slot, randomBlob()));
    expect(await blind.nextMessage()).toMatchObject({ slot_number: 1 });
    const firstPing = await blind.nextPing();
    for (let slot = 2; slot <= 4; slot += 1) await blind.nextMessage();
    for (let count = 4; count < WINDOW; count += 1) other.send(historyPush(randomBlob()));
    for (let count = 4; count < WINDOW; count += 1) await blind.nextMessage();

    for (let slot = 1; slot <= 4; slot += 1) blind.send(slotUpdate(slot, randomBlob(), 1_000));
    await deletedNothing(blind);
    expect(blind.untaken).toEqual([]);

    blind.pong(firstPing);
    const afterOne = await blind.next();
    expect(afterOne).toMatchObject({ kind: "message", message: { type: "slot_updated" } });
    const secondPing = await blind.nextPing();
    await blind.settle();
    expect(blind.untaken).toEqual([]);

    blind.pong(secondPing);
    const winners = [afterOne, ...(await take(blind, 3))].map((event) =>
      event.kind === "message" ? event.message["slot_number"] : event,
    );
    expect(winners.toSorted()).toEqual([1, 2, 3, 4]);
  });

  test("[W2] of equal times the greater device stands, whatever the content", async () => {
    await using world = await twoDevices(database);
    const { other, otherId, blind, blindId } = world;
    const [lesser, greater] = blobsByHash();
    // The greater device has the lesser content, or else the content could be what decides.
    const blindIsGreater = blindId > otherId;
    const [byOther, byBlind] = blindIsGreater ? [greater, lesser] : [lesser, greater];
    await other.sendForAnswer(slotUpdate(1, byOther, 5_000));
    blind.send({ ...slotUpdate(1, byBlind, 5_000), ref: "blind" });
    const ack = await blind.messageWhere(({ ref }) => ref === "blind");
    expect(ack["result"]).toBe(blindIsGreater ? "applied" : "stale");
    const [slot] = await world.server.json("GET", "/api/sync/slots", { token: world.token });
    expect(slot.encrypted_blob).toBe(lesser);
  });

  test("[W2] of equal times and devices the greater hash stands; the very same write is a duplicate and is not relayed", async () => {
    await using world = await twoDevices(database);
    const { other, blind } = world;
    const [lesser, greater] = blobsByHash();
    const applied = await other.sendForAnswer(slotUpdate(1, lesser, 5_000));
    expect(await other.sendForAnswer(slotUpdate(1, lesser, 5_000))).toMatchObject({
      result: "duplicate",
      seq: applied["seq"],
    });
    expect(await other.sendForAnswer(slotUpdate(1, greater, 5_000))).toMatchObject({ result: "applied" });
    expect(await other.sendForAnswer(slotUpdate(1, lesser, 5_000))).toMatchObject({ result: "stale" });
    await blind.settle();
    const told = blind.events.flatMap((event) => (event.kind === "message" ? [event.message["encrypted_blob"]] : []));
    expect(told).toEqual([lesser, greater]);
  });

  test("[W3] a timestamp of more than a minute ahead counts as now; one that is none is an error", async () => {
    await using world = await twoDevices(database);
    const { other, blind } = world;
    const before = Date.now();
    await other.sendForAnswer(slotUpdate(1, randomBlob(), before + 600_000));
    const bounded = await blind.nextMessage();
    expect(bounded["timestamp"]).toBeWithin(before, Date.now() + 1);
    const ahead = before + 50_000;
    await other.sendForAnswer(slotUpdate(2, randomBlob(), ahead));
    expect(await blind.messageWhere(({ slot_number }) => slot_number === 2)).toMatchObject({ timestamp: ahead });
    for (const timestamp of [0, -1, 1.5, Number.MAX_SAFE_INTEGER + 1, "1", null]) {
      const answer = await other.sendForAnswer({ ...slotUpdate(3, randomBlob()), timestamp });
      expect(answer).toMatchObject({ type: "error", code: "bad_request" });
    }
  });

  test("[W4] [W5] a write without a timestamp wins, and the time it counts with is stored, relayed and returned", async () => {
    await using world = await twoDevices(database);
    const { other, blind, server, token } = world;
    const ahead = Date.now() + 50_000;
    await other.sendForAnswer(slotUpdate(1, randomBlob(), ahead));
    await blind.nextMessage();

    const blob = randomBlob();
    const put = await server.json("PUT", "/api/sync/slots/1", { token, body: { encrypted_blob: blob } });
    const at = new Date(ahead + 1).toISOString();
    expect(put).toMatchObject({ result: "applied", updated_at: at });
    expect(await blind.messageWhere(({ encrypted_blob }) => encrypted_blob === blob)).toMatchObject({
      timestamp: ahead + 1,
      seq: put.seq,
    });
    expect(await server.json("GET", "/api/sync/slots", { token })).toMatchObject([
      { updated_at: at, encrypted_blob: blob, seq: put.seq },
    ]);
  });

  test("[W7] the same content under another id, and the same id again, are duplicates", async () => {
    await using world = await twoDevices(database);
    const { other, blind, server, token } = world;
    const first = historyPush(randomBlob());
    const applied = await other.sendForAnswer(first);
    expect(applied).toMatchObject({ type: "ack", result: "applied" });
    for (const again of [
      historyPush(randomBlob(), undefined, first.content_hash),
      historyPush(randomBlob(), first.id),
    ]) {
      expect(await other.sendForAnswer(again)).toMatchObject({ result: "duplicate", seq: applied["seq"] });
    }
    expect(await server.json("GET", "/api/sync/history", { token })).toMatchObject([
      { id: first.id, encrypted_blob: first.encrypted_blob, content_hash: first.content_hash },
    ]);
    expect(await blind.nextMessage()).toMatchObject({ id: first.id });
    blind.pong(await blind.nextPing());
    await blind.settle();
    expect(blind.untaken).toEqual([]);
  });

  test("[W7] another account may use the same ids and hashes, and sees nothing of them", async () => {
    await using world = await twoDevices(database);
    const item = historyPush(randomBlob());
    expect(await world.other.sendForAnswer(item)).toMatchObject({ result: "applied" });
    const stranger = await createAccount(world.server);
    const push = { token: stranger.token, body: { ...item, encrypted_blob: randomBlob() } };
    expect(await world.server.json("POST", "/api/sync/history", { ...push, status: 201 })).toMatchObject({
      result: "applied",
    });
    await world.server.json("DELETE", `/api/sync/history/${item.id}`, { token: stranger.token, status: 204 });
    expect(await world.server.json("GET", "/api/sync/history", { token: world.token })).toHaveLength(1);
  });

  test("[W8] a deleted id does not come back; its content under a new id does", async () => {
    await using world = await twoDevices(database);
    const { other, server, token } = world;
    const item = historyPush(randomBlob());
    await other.sendForAnswer(item);
    const deleted = await other.sendForAnswer({ type: "history_delete", id: item.id });
    expect(deleted).toMatchObject({ type: "ack", result: "applied" });
    expect(await other.sendForAnswer(item)).toMatchObject({ result: "stale", seq: deleted["seq"] });
    expect(await server.json("POST", "/api/sync/history", { token, body: item, status: 200 })).toMatchObject({
      result: "stale",
    });
    expect(await server.json("GET", "/api/sync/history", { token })).toEqual([]);
    expect(await other.sendForAnswer({ ...item, id: crypto.randomUUID() })).toMatchObject({ result: "applied" });
  });

  test("[W9] every applied change of an account has a greater seq than the one before it", async () => {
    await using world = await twoDevices(database);
    const { other, blind } = world;
    for (let count = 0; count < 20; count += 1) {
      other.send(
        count % 2 === 0 ? slotUpdate((count % 10) + 1, randomBlob(), 1_000 + count) : historyPush(randomBlob()),
      );
    }
    const seqs: number[] = [];
    while (seqs.length < 20) {
      const event = await blind.next();
      if (event.kind === "ping") blind.pong(event.payload);
      if (event.kind === "message") seqs.push(event.message["seq"]);
    }
    expect(seqs).toEqual([...new Set(seqs)].toSorted((left, right) => left - right));
  });
});

/** An account with one well-behaved device and one whose pongs the test sends. */
async function twoDevices(database: DatabaseKind) {
  const server = await startTestServer({ database });
  const account = await createAccount(server);
  const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
  const other = await TestSocket.open(server, first.token);
  const blind = await RawSocket.open(server, second.token);
  await Promise.all([other.settle(), blind.settle()]);
  return {
    server,
    token: account.token,
    other,
    otherId: first.id,
    blind,
    blindId: second.id,
    async [Symbol.asyncDispose]() {
      await blind[Symbol.asyncDispose]();
      await other.close();
      await server[Symbol.asyncDispose]();
    },
  };
}

/** Two blobs, the one with the lesser SHA-256 first. */
function blobsByHash(): [string, string] {
  const hash = (blob: string) => new Bun.CryptoHasher("sha256").update(Buffer.from(blob, "base64")).digest("hex");
  const [first, second] = [randomBlob(), randomBlob()];
  return hash(first) < hash(second) ? [first, second] : [second, first];
}

async function take(socket: RawSocket, count: number) {
  const events = [];
  while (events.length < count) events.push(await socket.next());
  return events;
}

/** What a client that applies everything it is sent shows of a slot; undefined when it was sent nothing of it. */
function finalSlot(socket: RawSocket, slotNumber: number): string | undefined {
  return socket.untaken
    .flatMap((event) => (event.kind === "message" ? [event.message] : []))
    .findLast((message) => message.type === "slot_updated" && message["slot_number"] === slotNumber)?.[
    "encrypted_blob"
  ];
}

/** A write with an answer that changes nothing: every write before it has been decided when this resolves. */
async function deletedNothing(socket: RawSocket): Promise<void> {
  const ref = crypto.randomUUID();
  socket.send({ type: "history_delete", id: crypto.randomUUID(), ref });
  await socket.answerTo(ref);
}
