/** What is past its time leaves, and no cursor silently lies about it. */
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
} from "./harness.ts";

/** Looks all the time, and keeps tombstones only as long as the test says. */
const eager = (tombstoneLifeMs: number) => (config: Config) => ({
  ...config,
  sync: { ...config.sync, retentionIntervalMs: 20, tombstoneLifeMs },
});
const DAY_MS = 86_400_000;

describe.each([...DATABASES])("retention on %s", (database) => {
  test("an item whose expires_at has come leaves, devices are told, and its id stays deleted ([W8])", async () => {
    await using server = await startTestServer({ database, adjust: eager(DAY_MS) });
    const account = await createAccount(server);
    const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
    const writer = await TestSocket.open(server, first.token);
    const reader = await TestSocket.open(server, second.token, "&protocol=2");
    const push = { ...historyPush(randomBlob()), expires_at: new Date(Date.now() + 300).toISOString() };
    const kept = historyPush(randomBlob());
    expect(await writer.sendForAnswer(push)).toMatchObject({ result: "applied" });
    expect(await writer.sendForAnswer(kept)).toMatchObject({ result: "applied" });
    expect(await reader.nextOf("history_deleted")).toMatchObject({ id: push.id, seq: 3 });
    expect(await server.json("GET", "/api/sync/history", { token: account.token })).toMatchObject([{ id: kept.id }]);
    expect(await writer.sendForAnswer({ ...push, expires_at: undefined })).toMatchObject({ result: "stale", seq: 3 });
  });

  test("the oldest items leave at the limit, and devices are told", async () => {
    await using server = await startTestServer({ database, env: { HISTORY_LIMIT: "3" } });
    const account = await createAccount(server);
    const [first, second] = [await createDevice(server, account), await createDevice(server, account)];
    const writer = await TestSocket.open(server, first.token);
    const reader = await TestSocket.open(server, second.token, "&protocol=2");
    const pushes = [1, 2, 3, 4, 5].map((minute) => ({
      ...historyPush(randomBlob()),
      created_at: new Date(Date.UTC(2026, 0, 1, 0, minute)).toISOString(),
    }));
    for (const push of pushes) expect(await writer.sendForAnswer(push)).toMatchObject({ result: "applied" });
    expect(await reader.nextOf("history_deleted")).toMatchObject({ id: pushes[0]?.id });
    expect(await reader.nextOf("history_deleted")).toMatchObject({ id: pushes[1]?.id });
    const left = await server.json("GET", "/api/sync/history", { token: account.token });
    expect(left).toMatchObject([{ id: pushes[4]?.id }, { id: pushes[3]?.id }, { id: pushes[2]?.id }]);
  });

  test("of too many tombstones all that are too many leave in one sweep, and older cursors start over", async () => {
    let tombstonesPerAccount = 1_000;
    const adjust = (config: Config) => ({ ...config, sync: { ...config.sync, tombstonesPerAccount } });
    await using server = await startTestServer({ database, adjust, env: { HISTORY_LIMIT: "1" } });
    const { token } = await createAccount(server);
    const pushHundred = async () => {
      const body = Array.from({ length: 100 }, () => {
        const { type: _, ...item } = historyPush(randomBlob());
        return item;
      });
      await server.json("POST", "/api/sync/history", { token, body, status: 201 });
    };
    for (let hundreds = 0; hundreds < 6; hundreds += 1) await pushHundred();
    const { cursor } = await server.json("GET", "/api/sync/changes", { token });
    await pushHundred();
    const answer = () => server.request("GET", `/api/sync/changes?cursor=${cursor}`, { token });
    expect((await answer()).status).toBe(200);

    tombstonesPerAccount = 50;
    await server.restart(); // sweeps once
    let status = 200;
    while (status === 200) ({ status } = await answer());
    expect(status).toBe(410);
    const fresh = await server.json("GET", "/api/sync/changes", { token });
    expect(fresh.changes).toHaveLength(1);
  });

  test("a cursor from before a removed tombstone gets resync_required, over REST (410) and on a socket", async () => {
    await using server = await startTestServer({ database, adjust: eager(0) });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    const writer = await TestSocket.open(server, device.token);
    const push = historyPush(randomBlob());
    await writer.sendForAnswer(push);
    const { cursor } = await server.json("GET", "/api/sync/changes", { token: account.token });
    await server.json("DELETE", `/api/sync/history/${push.id}`, { token: account.token, status: 204 });

    let response: Response;
    do response = await server.request("GET", `/api/sync/changes?cursor=${cursor}`, { token: account.token });
    while (response.status === 200); // until the next sweep
    expect(response.status).toBe(410);
    expect(await response.json()).toMatchObject({ code: "resync_required", reason: "too_old" });

    const socket = await TestSocket.open(server, device.token, `&protocol=2&cursor=${cursor}`);
    expect(await socket.nextOf("resync_required")).toEqual({ type: "resync_required", reason: "too_old" });
    expect((await socket.closed).code).toBe(4410);

    const fresh = await server.json("GET", "/api/sync/changes", { token: account.token });
    expect(fresh).toMatchObject({ changes: [], has_more: false });
    await server.json("GET", `/api/sync/changes?cursor=${fresh.cursor}`, { token: account.token, status: 200 });
  });
});
