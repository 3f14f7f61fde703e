/** Slots, history, changes and the edges of REST, through the front door, on both databases. */
import { describe, expect, test } from "bun:test";
import {
  createAccount,
  createDevice,
  DATABASES,
  randomBlob,
  startTestServer,
  TestSocket,
  type TestServer,
} from "./harness.ts";

const RFC3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

async function signedIn(server: TestServer) {
  const account = await createAccount(server);
  const device = await createDevice(server, account);
  return { account, device, token: device.token };
}

function item(contentHash: string = crypto.randomUUID(), id: string = crypto.randomUUID()) {
  return { id, encrypted_blob: randomBlob(), content_hash: contentHash };
}

describe.each([...DATABASES])("slots over REST on %s", (database) => {
  test("[W2] [W5] [W6] a PUT answers what stands: its own write, or the one that was better", async () => {
    await using server = await startTestServer({ database });
    const { device, token } = await signedIn(server);
    const put = (body: unknown) => server.json("PUT", "/api/sync/slots/7", { token, body, status: 200 });
    const [older, newer] = [randomBlob(), randomBlob()];
    const winner = {
      slot_number: 7,
      updated_at: "2020-01-01T00:00:00.001Z",
      updated_by: device.id,
      seq: expect.any(Number),
    };
    const timestamp = Date.parse(winner.updated_at);
    expect(await put({ encrypted_blob: newer, timestamp })).toEqual({ ...winner, result: "applied" });
    expect(await put({ encrypted_blob: older, timestamp: timestamp - 1 })).toEqual({ ...winner, result: "stale" });
    expect(await put({ encrypted_blob: newer, timestamp })).toEqual({ ...winner, result: "duplicate" });
    const { seq } = await put({ encrypted_blob: newer, timestamp });
    expect(await server.json("GET", "/api/sync/slots", { token })).toEqual([{ ...winner, encrypted_blob: newer, seq }]);
  });

  test("[W3] [W4] no timestamp always wins; one far ahead counts as now", async () => {
    await using server = await startTestServer({ database });
    const { token } = await signedIn(server);
    const before = Date.now();
    const ahead = { encrypted_blob: randomBlob(), timestamp: before + 3_600_000 };
    const bounded = await server.json("PUT", "/api/sync/slots/1", { token, body: ahead });
    expect(Date.parse(bounded.updated_at)).toBeWithin(before, Date.now() + 1);
    const slightly = { encrypted_blob: randomBlob(), timestamp: Date.now() + 30_000 };
    const accepted = await server.json("PUT", "/api/sync/slots/1", { token, body: slightly });
    expect(Date.parse(accepted.updated_at)).toBe(slightly.timestamp);
    const plain = await server.json("PUT", "/api/sync/slots/1", { token, body: { encrypted_blob: randomBlob() } });
    expect(plain).toMatchObject({ result: "applied" });
    expect(Date.parse(plain.updated_at)).toBe(slightly.timestamp + 1);
  });

  test("a write with the account's own token has no device", async () => {
    await using server = await startTestServer({ database });
    const { account } = await signedIn(server);
    const put = { token: account.token, body: { encrypted_blob: randomBlob() } };
    expect(await server.json("PUT", "/api/sync/slots/10", put)).toMatchObject({ updated_by: null });
    expect(await server.json("GET", "/api/sync/slots", { token: account.token })).toMatchObject([
      { slot_number: 10, updated_by: null, updated_at: expect.stringMatching(RFC3339) },
    ]);
  });

  test("a cleared slot is gone from the list, and its sockets hear of it", async () => {
    await using server = await startTestServer({ database });
    const { device, account } = await signedIn(server);
    const socket = await TestSocket.open(server, device.token, "&protocol=2");
    await socket.nextOf("sync_complete");
    const { token } = account;
    await server.json("PUT", "/api/sync/slots/2", { token, body: { encrypted_blob: randomBlob() } });
    await server.json("DELETE", "/api/sync/slots/2", { token, status: 204 });
    expect(await socket.nextOf("slot_cleared")).toMatchObject({ slot_number: 2 });
    expect(await server.json("GET", "/api/sync/slots", { token })).toEqual([]);
    await socket.close();
  });

  test("an account that is full takes nothing more, but may shrink", async () => {
    await using server = await startTestServer({ database, env: { ACCOUNT_STORAGE_BYTES: "200" } });
    const { token } = await signedIn(server);
    const blob = (bytes: number) => Buffer.alloc(bytes, 1).toString("base64");
    const put = (slot: number, bytes: number, status: number) =>
      server.json("PUT", `/api/sync/slots/${slot}`, { token, body: { encrypted_blob: blob(bytes) }, status });
    await put(1, 200, 200);
    expect(await put(2, 1, 413)).toMatchObject({ code: "quota_exceeded" });
    await put(1, 199, 200);
    await put(2, 1, 200);
    const push = (items: unknown, status: number) =>
      server.json("POST", "/api/sync/history", { token, body: items, status });
    expect(await push({ ...item(), encrypted_blob: blob(1) }, 413)).toMatchObject({ code: "quota_exceeded" });
    await put(1, 190, 200);
    const batch = [5, 9].map((bytes) => ({ ...item(), encrypted_blob: blob(bytes) }));
    expect(await push(batch, 201)).toMatchObject([{ result: "applied" }, { result: "quota_exceeded" }]);
  });
});

describe.each([...DATABASES])("history over REST on %s", (database) => {
  test("[W7] [W8] the same content once, a deleted id never again", async () => {
    await using server = await startTestServer({ database });
    const { token } = await signedIn(server);
    const push = (body: unknown, status: number) => server.json("POST", "/api/sync/history", { token, body, status });
    const first = item("hash-1");
    const created = await push(first, 201);
    const standing = { id: first.id, created_at: expect.stringMatching(RFC3339), seq: created.seq };
    expect(created).toEqual({ ...standing, result: "applied" });
    expect(await push(item("hash-1"), 200)).toEqual({ ...standing, result: "duplicate" });
    expect(await push(item("hash-2", first.id.toUpperCase()), 200)).toEqual({ ...standing, result: "duplicate" });

    await server.json("DELETE", `/api/sync/history/${first.id.toUpperCase()}`, { token, status: 204 });
    await server.json("DELETE", `/api/sync/history/${first.id}`, { token, status: 404 });
    expect(await push(first, 200)).toMatchObject({ id: first.id, result: "stale" });
    expect(await server.json("GET", "/api/sync/history", { token })).toEqual([]);
    await push(item("hash-1"), 201);
  });

  test("an array is answered item by item, in its order, also when items are equal", async () => {
    await using server = await startTestServer({ database });
    const { token } = await signedIn(server);
    const [a, b] = [item("hash-a"), item("hash-b")];
    const push = (body: unknown, status: number) => server.json("POST", "/api/sync/history", { token, body, status });
    await push(a, 201);
    const results = await push([b, a, item("hash-b"), b], 201);
    expect(results.map(({ id, result }: { id: string; result: string }) => [id, result])).toEqual([
      [b.id, "applied"],
      [a.id, "duplicate"],
      [b.id, "duplicate"],
      [b.id, "duplicate"],
    ]);
    await push([a, b], 200);
    expect(await server.json("GET", "/api/sync/history", { token })).toHaveLength(2);
  });

  test("pages by offset, and by a link that nothing shifts", async () => {
    await using server = await startTestServer({ database });
    const { token } = await signedIn(server);
    const at = (second: number) => ({ ...item(), created_at: `2024-05-01T12:00:0${second}+02:00` });
    // The last two share their time: their ids decide.
    const items = [at(1), at(2), at(3), at(4), at(4)].sort((x, y) =>
      x.created_at + x.id < y.created_at + y.id ? 1 : -1,
    );
    await server.json("POST", "/api/sync/history", { token, body: items, status: 201 });
    const ids = items.map(({ id }) => id);
    const get = async (query: string) => {
      const response = await server.request("GET", query, { token });
      const page = (await response.json()) as { id: string; created_at: string }[];
      return { page, link: /<([^>]+)>; rel="next"/.exec(response.headers.get("Link") ?? "")?.[1] };
    };

    const all = await get("/api/sync/history");
    expect(all.page.map(({ id }) => id)).toEqual(ids);
    expect(all.page[0]?.created_at).toBe("2024-05-01T10:00:04.000Z");
    expect(all.link).toBeUndefined();
    expect((await get("/api/sync/history?limit=2&offset=3")).page.map(({ id }) => id)).toEqual(ids.slice(3));

    const seen: string[] = [];
    let next: string | undefined = "/api/sync/history?limit=2";
    while (next !== undefined) {
      const { page, link } = await get(next);
      seen.push(...page.map(({ id }) => id));
      await server.json("POST", "/api/sync/history", { token, body: item() });
      next = link;
    }
    expect(seen).toEqual(ids);
  });
});

describe.each([...DATABASES])("changes over REST on %s", (database) => {
  test("everything once, in seq order, page by page; then only what is new", async () => {
    await using server = await startTestServer({ database });
    const { account, token } = await signedIn(server);
    const items = Array.from({ length: 5 }, () => item());
    await server.json("POST", "/api/sync/history", { token, body: items });
    await server.json("PUT", "/api/sync/slots/1", { token, body: { encrypted_blob: randomBlob() } });
    await server.json("DELETE", `/api/sync/history/${items[0]?.id}`, { token });

    const changes: { type: string; seq: number; id?: string }[] = [];
    let page = await server.json("GET", "/api/sync/changes?limit=2", { token });
    for (; ; page = await server.json("GET", `/api/sync/changes?limit=2&cursor=${page.cursor}`, { token })) {
      changes.push(...page.changes);
      if (!page.has_more) break;
    }
    expect(changes.map(({ seq }) => seq)).toEqual(changes.map(({ seq }) => seq).sort((a, b) => a - b));
    expect(changes.map(({ type }) => type)).toEqual([...Array<string>(4).fill("history_new"), "slot_updated"]);

    const caughtUp = `/api/sync/changes?cursor=${page.cursor}`;
    expect(await server.json("GET", caughtUp, { token })).toEqual({
      changes: [],
      cursor: page.cursor,
      has_more: false,
    });
    await server.json("DELETE", `/api/sync/history/${items[1]?.id}`, { token: account.token });
    expect(await server.json("GET", caughtUp, { token })).toMatchObject({
      changes: [{ type: "history_deleted", id: items[1]?.id }],
    });
  });

  test("a cursor that can't be continued is never met with silence", async () => {
    await using server = await startTestServer({ database });
    const { token } = await signedIn(server);
    const { cursor } = await server.json("GET", "/api/sync/changes", { token });
    const epoch = String(cursor).slice(0, 16);
    for (const [wrong, reason] of [
      ["nonsense", "unknown_cursor"],
      [`${epoch}-1~`, "unknown_cursor"],
      ["0123456789abcdef-0", "other_epoch"],
      [`${epoch}-zz`, "ahead"],
    ] as const) {
      const answer = await server.json("GET", `/api/sync/changes?cursor=${wrong}`, { token, status: 410 });
      expect(answer).toEqual({ error: expect.any(String), code: "resync_required", reason });
    }
    expect(await server.json("GET", "/api/sync/changes?cursor=", { token })).toMatchObject({ has_more: false });
  });
});

describe("the edges of REST", () => {
  test("what is not there is 404, what is there but not so is 405 with Allow, the socket's address is 426", async () => {
    await using server = await startTestServer();
    for (const path of ["/", "/api", "/api/sync/slots/1/2", "/api/sync/slot", "/API/info"]) {
      expect(await server.json("GET", path, { status: 404 })).toMatchObject({ code: "not_found" });
    }
    const patched = await server.request("PATCH", "/api/sync/slots/1");
    expect([patched.status, patched.headers.get("Allow")]).toEqual([405, "PUT, DELETE"]);
    expect(await patched.json()).toMatchObject({ code: "method_not_allowed" });
    const plain = await server.request("GET", "/api/sync/ws");
    expect([plain.status, plain.headers.get("Upgrade")]).toEqual([426, "websocket"]);
  });

  test("[E1] no number in a text logs the shipped client out", async () => {
    await using server = await startTestServer({ env: { MAX_BLOB_BYTES: "1401" } });
    const { token } = await signedIn(server);
    const body = { encrypted_blob: randomBlob(2_000) };
    const answer = await server.json("PUT", "/api/sync/slots/1", { token, body, status: 413 });
    expect(answer).toMatchObject({ code: "payload_too_large" });
    expect(answer.error).not.toContain("401");
  });

  test("every answer says that it is data, is not to be kept, and has an id of ours", async () => {
    await using server = await startTestServer();
    const { token } = await signedIn(server);
    const headers = { "X-Request-Id": "mine" };
    for (const response of [
      await server.request("GET", "/api/sync/slots", { token, headers }),
      await server.request("GET", "/api/sync/slots", { headers }),
      await server.request("GET", "/api/nothing", { headers }),
    ]) {
      expect(response.headers.get("X-Request-Id")).toMatch(/^[0-9a-f-]{36}$/);
      expect(response.headers.get("Cache-Control")).toBe("no-store");
      expect(response.headers.get("X-Content-Type-Options")).toBe("nosniff");
      expect(response.headers.get("Content-Security-Policy")).toContain("default-src 'none'");
      expect(response.headers.get("Access-Control-Allow-Origin")).toBeNull();
    }
  });

  test("browsers of CORS_ORIGINS are let in, others are not", async () => {
    await using server = await startTestServer({ env: { CORS_ORIGINS: "https://clips.example.org" } });
    const preflight = (origin: string) =>
      server.request("OPTIONS", "/api/sync/slots/1", {
        headers: { Origin: origin, "Access-Control-Request-Method": "PUT" },
      });
    const allowed = await preflight("https://clips.example.org");
    expect(allowed.status).toBe(204);
    expect(allowed.headers.get("Access-Control-Allow-Origin")).toBe("https://clips.example.org");
    expect(allowed.headers.get("Access-Control-Allow-Headers")).toContain("Authorization");
    expect((await preflight("https://evil.example")).headers.get("Access-Control-Allow-Origin")).toBeNull();
  });

  test("one line a request, with no secret in it", async () => {
    await using server = await startTestServer();
    const { account, token } = await signedIn(server);
    const blob = randomBlob();
    await server.json("PUT", "/api/sync/slots/3?note=query-string", { token, body: { encrypted_blob: blob } });
    await server.json("POST", "/api/auth/login", {
      body: { email: account.email, password: "wrong-password" },
      status: 401,
    });
    const socket = await TestSocket.open(server, token);
    await socket.close();

    const lines = server.logLines.map((line) => JSON.parse(line));
    expect(lines).toContainEqual(
      expect.objectContaining({
        level: "info",
        method: "PUT",
        path: "/api/sync/slots/3",
        status: 200,
        request_id: expect.any(String),
      }),
    );
    expect(lines.filter(({ path, method }) => path === "/api/sync/slots/3" && method === "PUT")).toHaveLength(1);
    const text = server.logLines.join("");
    for (const secret of [token, account.token, account.password, "wrong-password", blob, "query-string"])
      expect(text).not.toContain(secret);
  });
});
