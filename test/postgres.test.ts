import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import postgres from "postgres";
import { createTestDatabase, type PostgresServer, startPostgres } from "./postgres.ts";

const START_DEADLINE_MS = 30_000;
const STOP_DEADLINE_MS = 15_000;

describe("createTestDatabase", () => {
  test(
    "gives every caller an empty database of its own",
    async () => {
      await using one = await createTestDatabase();
      await using other = await createTestDatabase();
      const first = connect(one.url);
      const second = connect(other.url);

      await first`CREATE TABLE clips (id int)`;
      const [row] = await second`SELECT to_regclass('clips') AS found`;
      expect(row).toEqual({ found: null });
      await Promise.all([first.end(), second.end()]);
    },
    START_DEADLINE_MS,
  );

  test("drops a database that is still in use", async () => {
    const database = await createTestDatabase();
    const sql = connect(database.url);
    await sql`SELECT 1`;
    await database.drop();
    expect(sql`SELECT 1`.execute()).rejects.toThrow();
    await sql.end();
  });
});

describe("startPostgres", () => {
  let server: PostgresServer;
  beforeAll(async () => {
    server = await startPostgres();
    await query("CREATE TABLE clips (id int)");
  }, START_DEADLINE_MS);
  afterAll(() => server[Symbol.asyncDispose]());

  const query = async (text: string, url = server.url): Promise<object[]> => {
    const sql = connect(url);
    try {
      return await sql.unsafe<object[]>(text);
    } finally {
      await sql.end();
    }
  };

  test("is PostgreSQL 18 that keeps what it acknowledged", async () => {
    expect(await query("SHOW fsync")).toEqual([{ fsync: "on" }]);
    expect(await query("SELECT current_setting('server_version_num')::int / 10000 AS major")).toEqual([{ major: 18 }]);
  });

  test.each(["fast", "immediate"] as const)("comes back with its data after a stop: %s", async (mode) => {
    await query(`INSERT INTO clips VALUES (1)`);
    const before = await query("SELECT count(*) FROM clips");
    await server.stop(mode);
    expect(query("SELECT 1")).rejects.toThrow();
    await server.restart();
    expect(await query("SELECT count(*) FROM clips")).toEqual(before);
  });

  test("comes back after its main process was killed with clients connected", async () => {
    const sql = connect(server.url);
    await sql`SELECT 1`;
    const { pid } = server;
    await server.kill();
    await server.restart();
    expect(server.pid).not.toBe(pid);
    expect(await query("SELECT 1 AS one")).toEqual([{ one: 1 }]);
    await sql.end({ timeout: 1 });
  });

  test("answers nothing while frozen and goes on afterwards", async () => {
    const sql = connect(server.url);
    await sql`SELECT 1`;
    await server.freeze();
    const answer = sql`SELECT 1 AS one`.execute();
    const silence = Bun.sleep(200).then(() => "silence");
    expect(await Promise.race([answer, silence])).toBe("silence");
    server.thaw();
    expect([...(await answer)]).toEqual([{ one: 1 }]);
    await sql.end();
  });

  test(
    "ends with the process that started it, even when that is killed",
    async () => {
      const starter = Bun.spawn([process.execPath, "-e", STARTER], { stdout: "pipe" });
      const { value } = await starter.stdout.getReader().read();
      const [url = "", dataDirectory = ""] = new TextDecoder().decode(value).trim().split(" ");
      expect(await query("SELECT 1 AS one", url)).toEqual([{ one: 1 }]);

      starter.kill("SIGKILL");
      const deadline = Date.now() + STOP_DEADLINE_MS;
      while (existsSync(dataDirectory) && Date.now() < deadline) await Bun.sleep(20);
      expect(existsSync(dataDirectory)).toBeFalse();
      expect(query("SELECT 1", url)).rejects.toThrow();
    },
    START_DEADLINE_MS,
  );
});

const STARTER = `
  import { startPostgres } from ${JSON.stringify(import.meta.resolve("./postgres.ts"))};
  const { url, dataDirectory } = await startPostgres({ fsync: false });
  console.log(url, dataDirectory);
  setInterval(() => {}, 1000);
`;

function connect(url: string): postgres.Sql {
  return postgres(url, { max: 1, onnotice: () => {} });
}
