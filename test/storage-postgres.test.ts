/** What only the storage on PostgreSQL has: migrations by several at once, and a server that can go away. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import postgres from "postgres";
import { AppError } from "../src/errors.ts";
import { migratePostgres } from "../src/storage/migrate.ts";
import { translate } from "../src/storage/postgres/faults.ts";
import { POSTGRES_MIGRATIONS } from "../src/storage/postgres/migrations.ts";
import { openPostgresStorage, type PostgresOptions } from "../src/storage/postgres/storage.ts";
import { NewerDatabaseError } from "../src/storage/sqlite/migrations.ts";
import type { Storage } from "../src/storage/storage.ts";
import { within } from "./harness.ts";
import { createTestDatabase, startPostgres } from "./postgres.ts";
import {
  allChanges,
  apply,
  applyOne,
  createAccount,
  newDevice,
  newUser,
  NOW,
  postgresOptions,
  push,
  slot,
} from "./storage-fixtures.ts";

const BACK_WITHIN_MS = 5_000;
const UNAVAILABLE = expect.objectContaining({ code: "unavailable", retryAfterMs: expect.any(Number) });

setDefaultTimeout(60_000);

describe("migrations", () => {
  test("the program carries every migration of its folder, in order", async () => {
    const folder = join(import.meta.dir, "..", "drizzle", "postgres");
    const files = (await readdir(folder)).filter((name) => name.endsWith(".sql")).toSorted();
    expect(POSTGRES_MIGRATIONS.map(({ name }) => `${name}.sql`)).toEqual(files);
    for (const { name, sql } of POSTGRES_MIGRATIONS)
      expect(sql).toBe(await Bun.file(join(folder, `${name}.sql`)).text());
  });

  test("several servers that start at once on an empty database all come up, on one schema", async () => {
    await using database = await createTestDatabase();
    const opened = await Promise.all(
      Array.from({ length: 6 }, () => openPostgresStorage(postgresOptions(database.url))),
    );
    try {
      expect(new Set(opened.map(({ epoch }) => epoch)).size).toBe(1);
      const [one, other] = opened;
      if (one === undefined || other === undefined) throw new Error("six were opened");
      const { author } = await createAccount(one);
      expect(await applyOne(other, slot(author))).toMatchObject({ result: "applied" });
    } finally {
      await Promise.all(opened.map((storage) => storage.close()));
    }
  });

  test("a second run finds nothing to do", async () => {
    await using database = await createTestDatabase();
    for (let run = 0; run < 2; run += 1) await migratePostgres(database.url, { connectTimeoutSeconds: 5 });
    await using sql = connect(database.url);
    expect(await sql`SELECT name FROM schema_migrations ORDER BY name`).toMatchObject(
      POSTGRES_MIGRATIONS.map(({ name }) => ({ name })),
    );
  });

  test("the statement_timeout of requests does not end a migration, nor its wait for another's", async () => {
    await using database = await createTestDatabase();
    await using sql = connect(database.url);
    const name = new URL(database.url).pathname.slice(1);
    await sql.unsafe(`ALTER DATABASE ${name} SET statement_timeout = '50ms'`);
    const other = await sql.reserve();
    await other`SELECT pg_advisory_lock(7164782637466742644)`;
    const migrating = migratePostgres(database.url, { connectTimeoutSeconds: 5 });
    const waits = () => sql`SELECT pid FROM pg_stat_activity
      WHERE datname = current_database() AND wait_event = 'advisory' AND now() - query_start > interval '200 ms'`;
    while ((await within(waits(), "the migration to have waited for longer than a request may")).length === 0);
    await other`SELECT pg_advisory_unlock(7164782637466742644)`;
    await migrating;
    expect(await sql`SELECT name FROM schema_migrations`).toHaveLength(POSTGRES_MIGRATIONS.length);
    other.release();
  });

  test("a database that a newer server has written is refused, and left alone", async () => {
    await using database = await createTestDatabase();
    await migratePostgres(database.url, { connectTimeoutSeconds: 5 });
    await using sql = connect(database.url);
    await sql`INSERT INTO schema_migrations (name) VALUES ('9999_from_the_future')`;
    const opening = openPostgresStorage(postgresOptions(database.url));
    expect(await rejection(opening)).toBeInstanceOf(NewerDatabaseError);
    expect(await rejection(opening)).toMatchObject({ message: expect.stringContaining("9999_from_the_future") });
  });
});

describe("a database that is not there", () => {
  test("opening it fails at once, and says that it is unavailable", async () => {
    // A port that nothing listens on.
    const options = postgresOptions("postgres://nobody@127.0.0.1:1/nothing");
    expect(await rejection(openPostgresStorage(options))).toEqual(UNAVAILABLE);
  });

  test("connections that are killed in a burst of writes: each is acknowledged and kept, or refused as unavailable", async () => {
    await using database = await createTestDatabase();
    await using opened = await open(database.url);
    const { storage } = opened;
    const { userId, author } = await createAccount(storage);
    const acknowledged: string[] = [];
    const refusals: unknown[] = [];
    let bursting = true;
    const writers = Array.from({ length: 20 }, async () => {
      while (bursting) {
        const write = push(author);
        const outcome = await applyOne(storage, write, { historyItems: 1_000_000 }).catch((error: unknown) => {
          refusals.push(error);
        });
        if (outcome?.result === "applied") acknowledged.push(write.id);
      }
    });
    await using sql = connect(database.url);
    for (let kill = 0; kill < 30; kill += 1) {
      await Bun.sleep(15);
      await sql`
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()`;
    }
    bursting = false;
    await Promise.all(writers);
    expect(refusals.length).toBeGreaterThan(0);
    for (const refusal of refusals) expect(refusal).toEqual(UNAVAILABLE);

    await backAgain(storage);
    const kept = new Set((await allChanges(storage, userId)).map((change) => "id" in change && change.id));
    expect(acknowledged.filter((id) => !kept.has(id))).toEqual([]);
    // Every connection of the pool serves again.
    await Promise.all(Array.from({ length: 50 }, () => storage.ping()));
  });

  test("a server that hangs is given up on in time, and found again when it goes on", async () => {
    await using server = await startPostgres({ fsync: false });
    await using opened = await open(server.url, {
      connectTimeoutSeconds: 3,
      statementTimeoutMs: 1_500,
      queryTimeoutMs: 2_000,
    });
    const { storage } = opened;
    const { userId, author } = await createAccount(storage);
    await server.freeze();
    const since = performance.now();
    const given = await Promise.all([
      rejection(applyOne(storage, slot(author))),
      rejection(storage.summary(userId)),
      ...Array.from({ length: 20 }, () => rejection(storage.ping())),
    ]);
    expect(performance.now() - since).toBeLessThan(4_000);
    for (const error of given) expect(error).toEqual(UNAVAILABLE);
    // The connections that replace the silent ones hang as well.
    for (let tries = 0; tries < 3; tries += 1) expect(await rejection(storage.ping())).toEqual(UNAVAILABLE);
    server.thaw();
    await backAgain(storage);
    expect(await applyOne(storage, slot(author, { timestamp: NOW + 1 }))).toMatchObject({ result: "applied" });
  });

  test("a server that crashes and starts again is found again", async () => {
    await using server = await startPostgres({ fsync: false });
    await using opened = await open(server.url);
    const { storage } = opened;
    const { author } = await createAccount(storage);
    await server.stop("immediate");
    for (let tries = 0; tries < 5; tries += 1) {
      expect(await rejection(applyOne(storage, slot(author)))).toEqual(UNAVAILABLE);
    }
    await server.restart();
    await backAgain(storage);
    expect(await applyOne(storage, slot(author))).toMatchObject({ result: "applied" });
  });

  test("closing does not wait for a server that hangs", async () => {
    await using server = await startPostgres({ fsync: false });
    const storage = await openPostgresStorage(
      postgresOptions(server.url, { queryTimeoutMs: 1_000, statementTimeoutMs: 900 }),
    );
    await server.freeze();
    const hanging = rejection(storage.ping());
    const since = performance.now();
    await storage.close();
    expect(performance.now() - since).toBeLessThan(5_000);
    expect(await hanging).toEqual(UNAVAILABLE);
    expect(await rejection(storage.ping())).toEqual(UNAVAILABLE);
  });
});

describe("a database that is busy", () => {
  test("a statement that waits too long for a lock ends, having done nothing", async () => {
    await using database = await createTestDatabase();
    await using opened = await open(database.url, { statementTimeoutMs: 300 });
    const { storage } = opened;
    const { userId, author } = await createAccount(storage);
    await using sql = connect(database.url);
    await sql.begin(async (transaction) => {
      await transaction`SELECT FROM users WHERE id = ${userId} FOR UPDATE`;
      expect(await rejection(applyOne(storage, slot(author)))).toEqual(UNAVAILABLE);
    });
    expect(await applyOne(storage, slot(author))).toMatchObject({ result: "applied", seq: 1 });
  });

  test("a batch that PostgreSQL picked to end a deadlock is tried again", async () => {
    await using database = await createTestDatabase();
    await using opened = await open(database.url);
    const { storage } = opened;
    const accounts = await Promise.all([createAccount(storage), createAccount(storage)]);
    const [first, second] = accounts.toSorted((left, right) => (left.userId < right.userId ? -1 : 1));
    if (first === undefined || second === undefined) throw new Error("two accounts were made");
    await using sql = connect(database.url);
    let batch: Promise<unknown> = Promise.resolve();
    await sql.begin(async (transaction) => {
      await transaction`SET LOCAL deadlock_timeout = '60s'`; // so that the batch notices first
      await transaction`SELECT FROM users WHERE id = ${second.userId} FOR UPDATE`;
      batch = storage.applyWrites(
        [slot(first.author), slot(second.author)],
        { historyItems: 10, accountBytes: 1_000 },
        NOW,
      );
      await waitersOf(sql, 1);
      await transaction`SELECT FROM users WHERE id = ${first.userId} FOR UPDATE`;
    });
    expect(await batch).toMatchObject({ outcomes: [{ result: "applied" }, { result: "applied" }] });
  });

  test("[W9] a batch locks its accounts in the order of their ids, whatever its own", async () => {
    await using world = await lockedWorld();
    const { storage, sql } = world;
    const accounts = await Promise.all([createAccount(storage), createAccount(storage)]);
    const [first, second] = accounts.toSorted((left, right) => (left.userId < right.userId ? -1 : 1));
    if (first === undefined || second === undefined) throw new Error("two accounts were made");
    let batch: Promise<unknown> = Promise.resolve();
    await sql.begin(async (transaction) => {
      await transaction`SELECT FROM users WHERE id = ${second.userId} FOR UPDATE`;
      batch = apply(storage, [slot(second.author), slot(first.author)]);
      await waitersOf(sql, 1);
      const locked = rejection(sql`SELECT FROM users WHERE id = ${first.userId} FOR UPDATE NOWAIT`);
      expect(await locked).toMatchObject({ code: "55P03" });
    });
    expect(await batch).toMatchObject({ outcomes: [{ result: "applied" }, { result: "applied" }] });
  });

  test("[R6] what ends a token, or adds a device, waits for the writes that have seen the account before", async () => {
    await using world = await lockedWorld();
    const { storage, sql } = world;
    const { userId, devices } = await createAccount(storage);
    const operations = [
      () => storage.revokeDevice(userId, devices[0], NOW),
      () => storage.changePassword(userId, "hash", null, NOW),
      () => storage.registerDevice(newDevice(userId), 1),
      () => storage.retain(userId, NOW, { tombstonesBefore: NOW, tombstones: 10, limit: 10 }),
      () => storage.deleteUser(userId),
    ];
    for (const operation of operations) {
      let ended: Promise<unknown> = Promise.resolve();
      await sql.begin(async (transaction) => {
        await transaction`SELECT FROM users WHERE id = ${userId} FOR NO KEY UPDATE`; // as a batch of writes does
        ended = operation();
        await waitersOf(sql, 1);
      });
      expect(await ended).toBeTruthy();
    }
  });

  test("a link code is taken once, and wrong tries count, also where all come at the same moment", async () => {
    await using world = await lockedWorld();
    const { storage, sql } = world;
    const { userId } = await createAccount(storage);
    const atOnce = async (digest: string) => {
      await storage.putLinkCode({ userId, codeDigest: "right", sealedKey: "key", expiresAt: NOW + 1_000 });
      return together(sql, "link_codes", () => storage.takeLinkCode(userId, digest, 3, NOW));
    };
    expect((await atOnce("right")).filter((key) => key !== null)).toEqual(["key"]);
    await atOnce("wrong");
    expect(await storage.takeLinkCode(userId, "right", 3, NOW)).toBeNull();
  });

  test("an invite makes one account, also where all come at the same moment", async () => {
    await using world = await lockedWorld();
    const { storage, sql } = world;
    await storage.createInvite({ digest: "invite", createdAt: NOW, expiresAt: NOW + 1_000 });
    const created = await together(sql, "invites", () => storage.createInvitedUser(newUser(), "invite"));
    expect(created.toSorted()).toEqual(["created", "invite_invalid", "invite_invalid"]);
  });

  async function lockedWorld() {
    const database = await createTestDatabase();
    const opened = await open(database.url);
    const sql = connect(database.url);
    return {
      storage: opened.storage,
      sql,
      async [Symbol.asyncDispose]() {
        await opened[Symbol.asyncDispose]();
        await sql[Symbol.asyncDispose]();
        await database.drop();
      },
    };
  }

  /** Starts an operation three times, lets all of them come to the table's rows, and then go on. */
  async function together<T>(sql: postgres.Sql, table: string, operation: () => Promise<T>): Promise<T[]> {
    let started: Promise<T>[] = [];
    await sql.begin(async (transaction) => {
      await transaction`SELECT FROM ${sql(table)} FOR UPDATE`;
      started = [operation(), operation(), operation()];
      await waitersOf(sql, started.length);
    });
    return Promise.all(started);
  }

  /** Resolves when so many statements wait for a lock. */
  async function waitersOf(sql: postgres.Sql, count: number): Promise<void> {
    for (;;) {
      const waiting = await sql`
        SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`;
      if (waiting.length >= count) return;
      await Bun.sleep(5);
    }
  }
});

describe("errors", () => {
  const fault = (code: string) => Object.assign(new Error("fault"), { code });

  test.each(["08006", "25006", "53300", "57014", "57P01", "57P03", "CONNECTION_CLOSED", "ECONNREFUSED", "ECONNRESET"])(
    "%s says that the database is away",
    (code) => expect(translate(fault(code))).toEqual(UNAVAILABLE),
  );

  test("53100 says that its disk is full", () => {
    expect(translate(fault("53100"))).toMatchObject({ code: "disk_full" });
  });

  test("anything else is a fault of ours", () => {
    expect(translate(fault("42P01"))).not.toBeInstanceOf(AppError);
  });

  test("an error names no value of a query", async () => {
    await using database = await createTestDatabase();
    await using opened = await open(database.url);
    const user = newUser();
    await opened.storage.createUser(user);
    const error = await rejection(
      opened.storage.createUser({ ...newUser({ id: user.id }), passwordHash: "secret hash" }),
    );
    expect(error).not.toBeInstanceOf(AppError);
    const shown = Bun.inspect(error) + JSON.stringify(error) + (error instanceof Error ? Bun.inspect(error.cause) : "");
    expect(shown).not.toContain("secret hash");
    expect(shown).not.toContain(user.id);
    expect(shown).toContain("23505");
  });
});

async function open(url: string, fields: Partial<PostgresOptions> = {}) {
  const storage = await openPostgresStorage(postgresOptions(url, fields));
  return { storage, [Symbol.asyncDispose]: () => storage.close() };
}

/** Resolves when the storage serves again; fails when it takes too long. */
async function backAgain(storage: Storage): Promise<void> {
  const deadline = performance.now() + BACK_WITHIN_MS;
  for (;;) {
    try {
      return await storage.ping();
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await Bun.sleep(50);
    }
  }
}

async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it was not rejected");
}

function connect(url: string) {
  const sql = postgres(url, { max: 3, onnotice: () => {} });
  return Object.assign(sql, { [Symbol.asyncDispose]: () => sql.end({ timeout: 1 }) });
}
