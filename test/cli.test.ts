/** The commands, as their operator meets them: through the real program, beside a running server. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCommand, runWell } from "./child.ts";
import {
  createAccount,
  createDevice,
  DATABASES,
  randomBlob,
  startTestServer,
  TestSocket,
  within,
  type TestServer,
} from "./harness.ts";

setDefaultTimeout(30_000);

/** [R6] A second, and what a loaded machine may add to starting a process. */
const SOON_MS = 3_000;

const beside = (server: TestServer) => ({ DATA_DIR: server.dataDir, DATABASE_URL: server.databaseUrl });

describe.each(DATABASES)("beside a running server on %s", (database) => {
  test("user add: the account can log in, with a drawn password and with one from standard input", async () => {
    await using server = await startTestServer({ database });
    const env = beside(server);
    const output = await runWell(["user", "add", "Ann@Example.org"], { env });
    const [, password] = /not shown again: (\S+)/.exec(output) ?? [];
    await server.json("POST", "/api/auth/login", { body: { email: "ann@example.org", password }, status: 200 });

    const given = await runWell(["user", "add", "bob@example.org", "--password-stdin"], { env, input: "pass word\n" });
    expect(given).not.toContain("pass word");
    await server.json("POST", "/api/auth/login", {
      body: { email: "bob@example.org", password: "pass word" },
      status: 200,
    });
  });

  test("user add refuses an address that is taken or is none, and a short password", async () => {
    await using server = await startTestServer({ database });
    const env = beside(server);
    await createAccount(server, "ann@example.org");
    const taken = await runCommand(["user", "add", "ANN@example.org"], { env });
    expect(taken).toMatchObject({ code: 1, output: "" });
    expect(taken.complaints).toContain("already an account");
    expect(await runCommand(["user", "add", "ann"], { env })).toMatchObject({ code: 1, output: "" });
    const short = await runCommand(["user", "add", "bob@example.org", "--password-stdin"], { env, input: "12345" });
    expect(short.code).toBe(1);
    expect(short.complaints).toContain("at least 6 characters");
  });

  test("user list shows every account and what it holds", async () => {
    await using server = await startTestServer({ database });
    const ann = await createAccount(server, "ann@example.org");
    await createAccount(server, "bob@example.org");
    await server.json("POST", "/api/sync/history", {
      token: ann.token,
      body: { id: crypto.randomUUID(), encrypted_blob: Buffer.alloc(2048).toString("base64"), content_hash: "a" },
    });
    const lines = (await runWell(["user", "list"], { env: beside(server) })).trim().split("\n");
    expect(lines).toHaveLength(3);
    expect(lines.find((line) => line.endsWith("ann@example.org"))).toMatch(
      new RegExp(`^${ann.userId}  20\\S+Z        1  2\\.0 KiB`),
    );
  });

  test("[R6] user reset-password closes sockets and ends tokens of the running server", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const device = await createDevice(server, account);
    const socket = await TestSocket.open(server, device.token);
    const input = "new password\n";
    await runWell(["user", "reset-password", account.email, "--password-stdin"], { env: beside(server), input });
    expect(await within(socket.closed, "the socket to close", SOON_MS)).toMatchObject({ code: 4401 });
    for (const token of [account.token, device.token])
      expect((await server.request("GET", "/api/sync/slots", { token })).status).toBe(401);
    await server.json("POST", "/api/auth/login", {
      body: { email: account.email, password: "new password" },
      status: 200,
    });
  });

  test("[R6] user remove closes sockets and erases the account", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const other = await createAccount(server);
    const socket = await TestSocket.open(server, (await createDevice(server, account)).token);
    const otherSocket = await TestSocket.open(server, (await createDevice(server, other)).token);
    await runWell(["user", "remove", account.email], { env: beside(server) });
    expect(await within(socket.closed, "the socket to close", SOON_MS)).toMatchObject({ code: 4401 });
    expect((await server.request("GET", "/api/sync/slots", { token: account.token })).status).toBe(401);
    expect(await runWell(["user", "list"], { env: beside(server) })).not.toContain(account.email);
    await otherSocket.settle();
    expect(otherSocket.isOpen).toBe(true);
  });

  test("[R6] device list and device revoke: that device's socket closes, another's stays", async () => {
    await using server = await startTestServer({ database });
    const account = await createAccount(server);
    const [laptop, phone] = [await createDevice(server, account), await createDevice(server, account, "phone")];
    const laptopSocket = await TestSocket.open(server, laptop.token);
    const phoneSocket = await TestSocket.open(server, phone.token);
    await server.json("PUT", "/api/sync/slots/1", { token: account.token, body: { encrypted_blob: randomBlob() } });
    const env = beside(server);
    const listed = await runWell(["device", "list", account.email], { env });
    expect(listed).toContain(laptop.id);
    expect(listed).toMatch(new RegExp(`${phone.id}.*macos +phone`));

    await runWell(["device", "revoke", account.email, phone.id.toUpperCase()], { env });
    expect(await within(phoneSocket.closed, "the socket to close", SOON_MS)).toMatchObject({ code: 4401 });
    expect((await server.request("GET", "/api/sync/slots", { token: phone.token })).status).toBe(401);
    await laptopSocket.settle();
    expect(laptopSocket.isOpen).toBe(true);
    expect(await runWell(["device", "list", account.email], { env })).not.toContain(phone.id);
    expect(await runCommand(["device", "revoke", account.email, phone.id], { env })).toMatchObject({ code: 1 });
  });

  test("user invite prints a token that lets one person in", async () => {
    await using server = await startTestServer({ database, env: { REGISTRATION: "invite" } });
    const env = beside(server);
    const invite = (await runWell(["user", "invite"], { env })).trim();
    expect((await runWell(["user", "invite"], { env })).trim()).not.toBe(invite);
    const register = (email: string, invited: string) =>
      server.request("POST", "/api/auth/register", { body: { email, password: "test123", invite: invited } });
    expect((await register("ann@example.org", "made-up")).status).toBe(403);
    expect((await register("ann@example.org", invite)).status).toBe(201);
    expect((await register("bob@example.org", invite)).status).toBe(403);
  });

  test("migrate and healthcheck", async () => {
    await using server = await startTestServer({ database });
    expect(await runWell(["migrate"], { env: beside(server) })).toContain("up to date");
    const at = { HOST: "0.0.0.0", PORT: new URL(server.url).port };
    expect(await runWell(["healthcheck"], { env: at })).toBe("ready\n");
    expect(await runWell(["healthcheck", "--alive"], { env: at })).toBe("alive\n");
    await server.stop();
    const asked = await runCommand(["healthcheck"], { env: at });
    expect(asked).toMatchObject({ code: 1, output: "" });
    expect(asked.complaints).toContain("does not answer");
  });

  test("an account that is not there: exit code 1 and one plain line", async () => {
    await using server = await startTestServer({ database });
    for (const words of ["user reset-password", "user remove", "device list"]) {
      const { code, output, complaints } = await runCommand([...words.split(" "), "no@example.org"], {
        env: beside(server),
      });
      expect({ code, output, complaints }).toEqual({
        code: 1,
        output: "",
        complaints: "There is no account no@example.org.\n",
      });
    }
  });
});

test.each([
  { args: ["frobnicate"], says: "no command" },
  { args: ["serve", "now"], says: "serve takes no words" },
  { args: ["user"], says: "A word is missing" },
  { args: ["user", "frobnicate"], says: '"frobnicate" is unknown' },
  { args: ["user", "toString"], says: '"toString" is unknown' },
  { args: ["user", "add"], says: "EMAIL is missing" },
  { args: ["user", "add", "a@example.org", "secret"], says: '"secret" is too much' },
  { args: ["user", "add", "a@example.org", "--password=secret"], says: "Unknown option '--password'" },
  { args: ["user", "list", "all"], says: '"all" is too much' },
  { args: ["device", "revoke", "a@example.org"], says: "DEVICE-ID is missing" },
  { args: ["migrate", "up"], says: '"up" is too much' },
  { args: ["backup"], says: "FILE is missing" },
  { args: ["restore"], says: "FILE is missing" },
  { args: ["restore", "--new-epoch", "file"], says: '"file" is too much' },
  { args: ["copy", "--from", "sqlite:a"], says: "--to is missing" },
  { args: ["copy", "--from", "mysql://a", "--to", "sqlite:b"], says: "--from must be sqlite:PATH" },
  { args: ["healthcheck", "--loud"], says: "Unknown option '--loud'" },
  { args: ["config", "PORT"], says: '"PORT" is too much' },
])("called wrongly, $args: exit code 2, what is wrong, and the usage", async ({ args, says }) => {
  const dataDir = join(tmpdir(), `clipslot-none-${crypto.randomUUID()}`);
  const { code, output, complaints } = await runCommand(args, { env: { DATA_DIR: dataDir } });
  expect({ code, output }).toEqual({ code: 2, output: "" });
  expect(complaints).toContain(says);
  expect(complaints).toContain(args[0] === "frobnicate" ? "clipslot-server help" : "Usage: clipslot-server");
  expect(() => statSync(dataDir)).toThrow("ENOENT");
});

test("help lists the commands, and each has help of its own", async () => {
  const help = await runWell(["--help"]);
  const names = [...help.matchAll(/^ {2}(\w+) {2,}\S/gm)].map(([, name = ""]) => name);
  expect(names).toEqual(["serve", "migrate", "user", "device", "backup", "restore", "copy", "healthcheck", "config"]);
  for (const name of names) expect(await runWell([name, "--help"])).toContain(`Usage: clipslot-server ${name}`);
});

test("--version tells version and commit", async () => {
  expect(await runWell(["--version"])).toMatch(/^clipslot-server \d+\.\d+\.\d+ \((unknown|[0-9a-f]{12}(-dirty)?)\)\n$/);
});

test("a command for a database that is not there makes none: DATA_DIR is wrong", async () => {
  const dataDir = join(tmpdir(), `clipslot-none-${crypto.randomUUID()}`);
  for (const args of [
    ["user", "list"],
    ["device", "list", "a@b.c"],
    ["backup", "x"],
    ["restore", "--new-epoch"],
  ]) {
    const { code, complaints } = await runCommand(args, { env: { DATA_DIR: dataDir } });
    expect(code).toBe(1);
    expect(complaints).toContain(`There is no database at ${dataDir}/clipslot.db`);
  }
  expect(() => statSync(dataDir)).toThrow("ENOENT");
});

test("a database that can't be reached: exit code 1 and one plain line", async () => {
  const env = { DATABASE_URL: "postgres://nobody:secret-password@127.0.0.1:1/none" };
  const { code, output, complaints } = await runCommand(["user", "list"], { env });
  expect({ code, output }).toEqual({ code: 1, output: "" });
  expect(complaints).toContain("can't be reached");
  expect(complaints.trim().split("\n")).toHaveLength(1);
});

test("config says what is in force and hides secrets", async () => {
  const env = {
    PORT: "8080",
    JWT_SECRET: "Zq8-vT3kW9xB5mN7cL2jH6fD4gS1aP0o",
    DATABASE_URL: "postgres://clip:hidden-1@db.example.org/clips?sslpassword=hidden-2&sslmode=require",
    DATABASE_DIRECT_URL: "postgres://clip:hidden-3@a.example.org:1,b.example.org:2/clips",
  };
  const output = await runWell(["config"], { env });
  expect(output).toContain("PORT=8080\n");
  expect(output).toMatch(/^HOST=127\.0\.0\.1 +# default$/m);
  expect(output).toContain("JWT_SECRET=***\n");
  expect(output).toContain("DATABASE_URL=postgres://clip:***@db.example.org/clips?sslpassword=***&sslmode=require\n");
  expect(output).not.toMatch(/hidden|Zq8/);
  expect(await runCommand(["config"], { env: { PORT: "many" } })).toEqual({
    code: 1,
    output: "",
    complaints: "The configuration has faults:\n  PORT must be a port number\n",
  });
});

test("what a command makes is readable by its owner alone", async () => {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-mode-"));
  try {
    await runWell(["user", "add", "ann@example.org"], { env: { DATA_DIR: join(dataDir, "new") } });
    expect(statSync(join(dataDir, "new")).mode & 0o777).toBe(0o700);
    expect(statSync(join(dataDir, "new/clipslot.db")).mode & 0o777).toBe(0o600);
  } finally {
    rmSync(dataDir, { recursive: true, force: true });
  }
});
