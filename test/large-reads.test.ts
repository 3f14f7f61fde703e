/** Answers that are too large for memory, and readers that don't read. On both databases. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Config } from "../src/config.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  randomBlob,
  startTestServer,
  within,
  type DatabaseKind,
  type TestServer,
} from "./harness.ts";
import { readNoFurther } from "./stalled-reader.ts";

// Megabytes have to be written before they can be read.
setDefaultTimeout(60_000);

/** An account with ten slots of so many bytes. */
async function fullSlots(server: TestServer, bytes = 1_000_000): Promise<{ token: string }> {
  const blob = Buffer.alloc(bytes, 7).toString("base64");
  const { token } = await createDevice(server, await createAccount(server));
  for (let slot = 1; slot <= 10; slot += 1) {
    await server.json("PUT", `/api/sync/slots/${slot}`, { token, body: { encrypted_blob: blob } });
  }
  return { token };
}

/** A server that lets an account have two large reads at once. */
function twoAtOnce(database: DatabaseKind): Promise<TestServer> {
  const adjust = (config: Config) => ({ ...config, limits: { ...config.limits, streamsPerAccount: 2 } });
  return startTestServer({ database, env: { RATE_LIMITS: "on" }, adjust });
}

describe.each([...DATABASES])("large reads on %s", (database) => {
  test("slots that are written while they are read are the same slots", async () => {
    const adjust = (config: Config) => ({ ...config, sync: { ...config.sync, historyPageBytes: 100 } });
    await using server = await startTestServer({ database, adjust });
    const { token } = await createDevice(server, await createAccount(server));
    const slots = () => server.request("GET", "/api/sync/slots", { token });
    const put = (slot: number, blob: string) =>
      server.json("PUT", `/api/sync/slots/${slot}`, { token, body: { encrypted_blob: blob } });
    const blobs = [2, 7, 9].map((slot) => ({ slot, blob: randomBlob(20) }));
    const written = [];
    for (const { slot, blob } of blobs) {
      const { result: _, ...rest } = await put(slot, blob);
      written.push({ ...rest, encrypted_blob: blob });
    }
    await put(8, randomBlob(500));
    const large = await slots();
    expect([large.status, large.headers.get("Content-Type"), large.headers.get("Content-Length")]).toEqual([
      200,
      "application/json",
      null,
    ]);
    expect(((await large.json()) as { slot_number: number }[]).map(({ slot_number }) => slot_number)).toEqual([
      2, 7, 8, 9,
    ]);
    await server.json("DELETE", "/api/sync/slots/8", { token });
    const small = await slots();
    expect(small.headers.get("Content-Length")).not.toBeNull();
    expect(await small.json()).toEqual(written);
  });

  test("slots are read from the database as their reader goes on, not ahead of it", async () => {
    await using server = await startTestServer({ database, env: { MAX_BLOB_BYTES: "8000000" } });
    const { token } = await fullSlots(server, 8_000_000);
    const reader = await readNoFurther(server, token, "/api/sync/slots");
    await server.json("GET", "/api/sync/slots", { token });
    await server.json("DELETE", "/api/sync/slots/10", { token });
    const { chunks, isWhole } = await reader.finish();
    expect(isWhole).toBe(true);
    expect(JSON.parse(chunks).map(({ slot_number }: { slot_number: number }) => slot_number)).toEqual([
      1, 2, 3, 4, 5, 6, 7, 8, 9,
    ]);
  });

  test("pages of changes are small, and lead to the end", async () => {
    await using server = await startTestServer({ database });
    const { token } = await fullSlots(server);
    const numbers: number[] = [];
    for (let cursor = "", more = true; more;) {
      const page = await server.json("GET", `/api/sync/changes?cursor=${cursor}`, { token });
      expect(page.changes).toHaveLength(1);
      numbers.push(page.changes[0].slot_number);
      ({ cursor, has_more: more } = page);
    }
    expect(numbers).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  });

  test("an account has so many at once, and gets its places back however a read ends", async () => {
    await using server = await twoAtOnce(database);
    const { token } = await fullSlots(server);
    const neighbour = await fullSlots(server);
    const status = async (path = "/api/sync/slots", method = "GET") => {
      const answer = await server.request(method, path, { token });
      await answer.arrayBuffer();
      return answer.status;
    };
    // What is read to its end, what is answered without a body, and what fails.
    for (let count = 0; count < 5; count += 1) {
      expect([await status(), await status("/api/sync/slots", "HEAD")]).toEqual([200, 200]);
    }
    const stalled = [
      await readNoFurther(server, token, "/api/sync/slots"),
      await readNoFurther(server, token, "/api/auth/export"),
    ];
    const refused = await server.request("GET", "/api/auth/export", { token });
    expect([refused.status, await refused.json()]).toEqual([429, { error: expect.any(String), code: "rate_limited" }]);
    expect(Number(refused.headers.get("Retry-After"))).toBeGreaterThan(0);
    expect(refused.headers.get("Content-Disposition")).toBeNull();
    expect(await status("/api/sync/history")).toBe(200);
    await server.json("GET", "/api/sync/slots", { token: neighbour.token });

    for (const reader of stalled) reader.leave();
    await within(
      (async () => {
        while ((await status()) !== 200);
      })(),
      "the places to be free again",
    );
    expect(await Promise.all([status(), status()])).toEqual([200, 200]);
  });
});
