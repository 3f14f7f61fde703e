/** Pages of the history that are too large for memory: whole for the client, piece by piece for the server. */
import { Database } from "bun:sqlite";
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import type { Config } from "../src/config.ts";
import {
  createAccount,
  DATABASES,
  historyPush,
  randomBlob,
  startTestServer,
  type DatabaseKind,
  type TestServer,
} from "./harness.ts";
import { readNoFurther } from "./stalled-reader.ts";

// Megabytes have to be written before they can be read.
setDefaultTimeout(60_000);

const FIRST_MOMENT = Date.parse("2024-05-01T00:00:00Z");
/** More than the two sockets between the server and a client who does not read take in. */
const LARGE_BLOB = Buffer.alloc(1_000_000, 7).toString("base64");
const LARGE_ITEMS = 24;

describe.each([...DATABASES])("a page of the history that is larger than its bytes in memory, on %s", (database) => {
  test("[H1] comes whole and in order, by offset and by link", async () => {
    await using world = await accountWithHistory(database, { count: 23, blob: randomBlob(700), pageBytes: 3_000 });
    const { ids, get } = world;
    const all = await get("/api/sync/history");
    expect(all.ids).toEqual(ids);
    expect([all.contentType, all.link]).toEqual(["application/json", undefined]);
    expect(all.page[0]).toEqual({
      id: expect.any(String),
      encrypted_blob: expect.any(String),
      content_hash: expect.any(String),
      device_id: null,
      created_at: expect.any(String),
      seq: expect.any(Number),
    });

    const middle = await get("/api/sync/history?limit=10&offset=5");
    expect(middle.ids).toEqual(ids.slice(5, 15));
    expect((await get(middle.link ?? "")).ids).toEqual(ids.slice(15));
    expect((await get("/api/sync/history?limit=10&offset=20")).ids).toEqual(ids.slice(20));
    const exact = await get("/api/sync/history?limit=23");
    expect(exact.ids).toEqual(ids);
    expect(await get(exact.link ?? "")).toMatchObject({ ids: [], link: undefined });

    for (const limit of [1, 4, 9]) {
      const pages: string[][] = [];
      for (let path: string | undefined = `/api/sync/history?limit=${limit}`; path !== undefined;) {
        const { ids: page, link } = await get(path);
        pages.push(page);
        path = link;
      }
      expect(pages.flat()).toEqual(ids);
      expect(pages.slice(0, -1).every((page) => page.length === limit)).toBe(true);
    }
  });

  test("answers a HEAD like a GET, without the page", async () => {
    await using world = await accountWithHistory(database, { count: 9, blob: randomBlob(700), pageBytes: 3_000 });
    const path = "/api/sync/history?limit=8";
    const head = await world.server.request("HEAD", path, { token: world.token });
    expect([head.status, head.headers.get("Content-Type"), await head.text()]).toEqual([200, "application/json", ""]);
    expect(head.headers.get("Link")).toContain((await world.get(path)).link ?? "no link");
  });

  test("[H1] ends where its link goes on, whatever comes and goes while it is read", async () => {
    await using world = await accountWithHistory(database, { count: LARGE_ITEMS, blob: LARGE_BLOB });
    const { server, token, ids, get } = world;
    const reader = await readNoFurther(server, token, "/api/sync/history?limit=20");
    await server.json("DELETE", `/api/sync/history/${ids[18]}`, { token });
    const between = { ...historyPush(randomBlob()), created_at: momentOf(17.5) };
    await server.json("POST", "/api/sync/history", { token, body: between, status: 201 });

    const { head, chunks, isWhole } = await reader.finish();
    expect(isWhole).toBe(true);
    const page = JSON.parse(chunks) as { id: string }[];
    expect(page.map(({ id }) => id)).toEqual(ids.slice(0, 20).filter((id) => id !== ids[18]));
    const link = /^link: <([^>]+)>/im.exec(head)?.[1] ?? "";
    expect((await get(link)).ids).toEqual(ids.slice(20));
  });

  test("[H4] a fault on the way breaks the transfer off, and is logged once; one before it is an answer", async () => {
    await using world = await accountWithHistory(database, { count: LARGE_ITEMS, blob: LARGE_BLOB });
    const { server, token } = world;
    const reader = await readNoFurther(server, token, "/api/sync/history?limit=1000");
    await loseHistory(server);

    const { head, isWhole } = await reader.finish();
    expect(head).toStartWith("HTTP/1.1 200");
    expect(isWhole).toBe(false);
    const requestId = /^x-request-id: (\S+)/im.exec(head)?.[1];
    const errors = server.logLines.map((line) => JSON.parse(line)).filter(({ level }) => level === "error");
    expect(errors).toEqual([
      expect.objectContaining({ message: "an answer broke off", request_id: requestId, path: "/api/sync/history" }),
    ]);
    expect(await server.json("GET", "/api/sync/history?limit=1000", { token, status: 500 })).toMatchObject({
      code: "internal",
      request_id: expect.any(String),
    });
  });

  test("a client who leaves is no fault", async () => {
    await using world = await accountWithHistory(database, { count: LARGE_ITEMS, blob: LARGE_BLOB });
    const { server, token, ids, get } = world;
    const readers = await Promise.all(
      Array.from({ length: 5 }, () => readNoFurther(server, token, "/api/sync/history?limit=1000")),
    );
    for (const reader of readers) reader.leave();
    expect((await get("/api/sync/history?limit=1000")).ids).toEqual(ids);
    expect(server.logLines.filter((line) => line.includes('"level":"error"'))).toEqual([]);
  });
});

/** An account with so many items, a second apart; `ids` newest first. */
async function accountWithHistory(
  database: DatabaseKind,
  { count, blob, pageBytes }: { count: number; blob: string; pageBytes?: number },
) {
  const adjust = (config: Config): Config => ({
    ...config,
    sync: { ...config.sync, historyPageBytes: pageBytes ?? config.sync.historyPageBytes },
  });
  const server = await startTestServer({ database, adjust });
  const { token } = await createAccount(server);
  const items = Array.from({ length: count }, (_, age) => ({ ...historyPush(blob), created_at: momentOf(age) }));
  for (const body of items) await server.json("POST", "/api/sync/history", { token, body, status: 201 });

  const get = async (path: string) => {
    const response = await server.request("GET", path, { token });
    expect(response.status).toBe(200);
    const page = (await response.json()) as { id: string; [field: string]: unknown }[];
    const link = /^<([^>]+)>; rel="next"$/.exec(response.headers.get("Link") ?? "")?.[1];
    return { page, ids: page.map(({ id }) => id), link, contentType: response.headers.get("Content-Type") };
  };

  return {
    server,
    token,
    ids: items.map(({ id }) => id),
    get,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

function momentOf(age: number): string {
  return new Date(FIRST_MOMENT - age * 1_000).toISOString();
}

/** From now on a read of the history fails. */
async function loseHistory(server: TestServer): Promise<void> {
  const rename = "ALTER TABLE synced_history RENAME TO lost_history";
  if (server.databaseUrl === undefined) {
    using database = new Database(join(server.dataDir, "clipslot.db"));
    database.run(rename);
  } else {
    await using sql = new Bun.SQL(server.databaseUrl, { max: 1 });
    await sql.unsafe(rename);
  }
}
