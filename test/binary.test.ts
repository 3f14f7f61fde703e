/** The single binary: it runs alone, takes nothing from the folder it stands in, and has everything inside. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCommand, runWell } from "./child.ts";
import { connect, createAccount, createDevice, randomBlob, slotUpdate, TestSocket, within } from "./harness.ts";
import { createTestDatabase } from "./postgres.ts";

setDefaultTimeout(60_000);

/** The targets are 50 ms and 60 MB; a loaded machine gets room. */
const READY_MS = 3_000;
const REST_MB = 150;

const folder = mkdtempSync(join(tmpdir(), "clipslot-binary-"));
const binary = join(folder, "clipslot-server");
const program = [binary];

beforeAll(async () => {
  const build = Bun.spawn([process.execPath, join(import.meta.dir, "../src/build.ts"), "--outfile", binary], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  expect(await build.exited).toBe(0);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("alone in a folder with a hostile .env and bunfig.toml, it reads neither", async () => {
  const cwd = emptyFolder("hostile");
  const hostile = "PORT=1\nDATA_DIR=stolen\nJWT_SECRET=0123456789abcdefghijklmnopqrstuvwxyz\nREGISTRATION=closed\n";
  for (const name of [".env", ".env.local", ".env.production"]) writeFileSync(join(cwd, name), hostile);
  writeFileSync(join(cwd, "bunfig.toml"), 'preload = ["./preload.ts"]\n');
  writeFileSync(join(cwd, "preload.ts"), 'require("node:fs").writeFileSync("owned", "");\n');
  writeFileSync(join(cwd, "package.json"), '{ "name": "hostile", "version": "6.6.6", "imports": {} }\n');

  const config = await runWell(["config"], { program, cwd });
  expect(config).toMatch(/^PORT=3000 +# default$/m);
  expect(config).toMatch(/^JWT_SECRET= +# not set$/m);
  expect(await runWell(["--version"], { program, cwd })).not.toContain("6.6.6");

  await using server = await startBinary(cwd);
  await createAccount(connect(server.url));
  expect(await server.stop()).toBe(0);
  expect(existsSync(join(cwd, "owned"))).toBe(false);
  expect(existsSync(join(cwd, "stolen"))).toBe(false);
  expect(readdirSync(join(cwd, "data")).sort()).toEqual(["clipslot.db", "clipslot.db.lock", "jwt-secret"]);
});

test("it relays, serves its pages, and is soon ready and small", async () => {
  const cwd = emptyFolder("relay");
  await using server = await startBinary(cwd);
  const connection = connect(server.url);
  const account = await createAccount(connection);
  const [laptop, phone] = [await createDevice(connection, account), await createDevice(connection, account, "phone")];
  const from = await TestSocket.open(server, laptop.token);
  const to = await TestSocket.open(server, phone.token);
  const blob = randomBlob();
  from.send(slotUpdate(1, blob));
  expect(await to.nextOf("slot_updated")).toMatchObject({ encrypted_blob: blob, updated_by: laptop.id });
  for (const path of ["/docs", "/api-docs/openapi.json"])
    expect({ path, status: (await connection.request("GET", path)).status }).toEqual({ path, status: 200 });
  await Promise.all([from.close(), to.close()]);
  expect(await server.stop()).toBe(0);

  await using again = await startBinary(cwd);
  const restMb = residentMegabytes(again.pid);
  console.log(
    `binary ${(Bun.file(binary).size / 1e6).toFixed(0)} MB; ready after ${server.readyMs.toFixed(0)} ms (new folder), ` +
      `${again.readyMs.toFixed(0)} ms (again); ${restMb?.toFixed(0) ?? "?"} MB at rest`,
  );
  expect(again.readyMs).toBeLessThan(READY_MS);
  expect(restMb ?? 0).toBeLessThan(REST_MB);
});

test("its commands work: migrations and threads are inside", async () => {
  const cwd = emptyFolder("commands");
  await using database = await createTestDatabase();
  const run = (...args: string[]) => runWell(args, { program, cwd });
  await run("user", "add", "ann@example.org");
  await run("backup", "backup.db");
  await run("user", "remove", "ann@example.org");
  await run("restore", "backup.db");
  await run("copy", "--from", "sqlite:data", "--to", database.url);
  const listed = await runWell(["user", "list"], { program, cwd, env: { DATABASE_URL: database.url } });
  expect(listed).toContain("ann@example.org");
  expect(await runCommand(["healthcheck"], { program, cwd, env: { PORT: "1" } })).toMatchObject({ code: 1 });
});

test("--version tells version and commit", async () => {
  const { version } = JSON.parse(readFileSync(join(import.meta.dir, "../package.json"), "utf8"));
  const cwd = emptyFolder("version");
  expect(await runWell(["--version"], { program, cwd })).toMatch(
    new RegExp(`^clipslot-server ${version} \\((unknown|[0-9a-f]{12}(-dirty)?)\\)\n$`),
  );
});

test("a server goes on when nobody reads its log any more", async () => {
  await using server = await startBinary(emptyFolder("log"), { LOG_LEVEL: "debug" });
  await server.closeOutput();
  const connection = connect(server.url);
  const account = await createAccount(connection);
  await createDevice(connection, account);
  await connection.json("GET", "/api/auth/devices", { token: account.token });
  expect(await server.stop()).toBe(0);
});

function emptyFolder(name: string): string {
  const path = join(folder, name);
  mkdirSync(path);
  return path;
}

async function startBinary(cwd: string, env: Record<string, string> = {}) {
  const begun = performance.now();
  const child = Bun.spawn([binary], {
    cwd,
    env: { PORT: "0", RATE_LIMITS: "off", ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const reader = child.stdout.getReader();
  const decoder = new TextDecoder();
  let output = "";
  let url: string | undefined;
  while (url === undefined) {
    const { value, done } = await within(reader.read(), "the binary to be ready");
    if (done) throw new Error(`the binary ended before it was ready:\n${output}`);
    output += decoder.decode(value, { stream: true });
    url = /is ready at (http:[^"\s]+)/.exec(output)?.[1];
  }
  await connect(url).request("GET", "/readyz");
  return {
    url,
    pid: child.pid,
    /** From the start of the process to the first answer. */
    readyMs: performance.now() - begun,
    closeOutput: () => reader.cancel(),
    async stop() {
      child.kill("SIGTERM");
      return within(child.exited, "the binary to end");
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

/** undefined where there is no /proc. */
function residentMegabytes(pid: number): number | undefined {
  if (process.platform !== "linux") return undefined;
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kilobytes) / 1024;
}
