/** README.md does not lie: its shell blocks run, its tables are complete, its links lead somewhere. */
import { expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { describeSettings } from "../src/config.ts";
import { startChildServer } from "./child.ts";
import { createTestDatabase } from "./postgres.ts";
import { readmeBlocks } from "./readme-blocks.ts";

const ROOT = join(import.meta.dir, "..");
const README = readFileSync(join(ROOT, "README.md"), "utf8");

test("every shell block says whether it runs here", () => {
  const unmarked = readmeBlocks(README).filter(({ language, mark }) => language === "sh" && mark === "");
  expect(unmarked).toEqual([]);
});

test("the shell blocks that can run here do, in their order, as they stand", async () => {
  const folder = mkdtempSync(join(tmpdir(), "clipslot-readme-"));
  const server = await startChildServer({ DATA_DIR: join(folder, "data"), METRICS_PORT: "0" });
  await using database = await createTestDatabase();
  try {
    const metricsUrl = new URL(/"metrics":"([^"]+)"/.exec(server.output())?.[1] ?? "");
    const run = shellIn(folder, {
      PORT: new URL(server.url).port,
      addresses: { "localhost:3000": new URL(server.url).host, "localhost:9464": metricsUrl.host },
    });

    const walk = await run("walk");
    expect(walk).toContain('{"token":');
    expect(walk).toContain('"slot_number":1,"encrypted_blob":"RU5DOmNpcGhlcnRleHQ="');
    expect(walk).toMatch(/desktop hears .*"type":"slot_updated","slot_number":1/);
    expect(walk).toMatch(/desktop hears .*"type":"slot_updated","slot_number":2/);
    expect(walk).toMatch(/laptop hears .*"type":"history_new"/);
    expect(await run("database")).toContain(Buffer.from("ENC:ciphertext").toString("hex").toUpperCase());

    expect(await run("metrics")).toContain('clipslot_connected_sockets{protocol="1"} 0');
    expect(metricsIn(README)).toEqual(await metricsAt(metricsUrl));

    const commands = await run("commands");
    expect(commands).toContain("Added ana@example.org");
    expect(commands).toContain("ready");
    expect(commands).toContain("checked.");
    expect(commands.match(/"token":/g)).toHaveLength(1);

    expect(await server.kill("SIGTERM")).toBe(0);
    expect(await run("restore")).toContain("Restored");
    expect(await run("move", { DATABASE_URL: database.url })).toContain("Copied and verified.");
  } finally {
    await server.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  }
}, 60_000);

test("the table of variables is complete, with their defaults", () => {
  const rows = [...README.matchAll(/^\| `([A-Z_]+)` \| (?:`(.*?)`)? ?\|/gm)];
  const told = rows.map(([, name, value = ""]) => ({ name, value }));
  expect(told).toEqual(describeSettings({}).map(({ name, value }) => ({ name, value })));
});

test("every link within the project leads somewhere", () => {
  const slugs = new Set(
    [...README.matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
      (title ?? "")
        .toLowerCase()
        .replaceAll(/[^\w -]/g, "")
        .replaceAll(" ", "-"),
    ),
  );
  const targets = [...README.matchAll(/\]\(([^)]+)\)/g)].map(([, target]) => target ?? "");
  const broken = targets
    .filter((target) => !target.startsWith("https://"))
    .filter((target) => (target.startsWith("#") ? !slugs.has(target.slice(1)) : !existsSync(join(ROOT, target))));
  expect(broken).toEqual([]);
});

/** The metrics that a text names, without the endings of a histogram's parts. */
function metricsIn(text: string): string[] {
  const names = [...text.matchAll(/\bclipslot_\w+[a-z]\b/g)].map(([name]) => name.replace(/_(bucket|sum|count)$/, ""));
  return [...new Set(names)].toSorted();
}

async function metricsAt(url: URL): Promise<string[]> {
  const text = await (await fetch(url)).text();
  return [...text.matchAll(/^# TYPE (\w+)/gm)].map(([, name]) => String(name)).toSorted();
}

interface World {
  PORT: string;
  /** What stands in the README, and what it is here. */
  addresses: Record<string, string>;
}

/** Runs blocks as a person would who has the server's command and Bun at hand. */
function shellIn(folder: string, { addresses, ...env }: World) {
  const bin = mkdtempSync(join(folder, "bin-"));
  const commands = {
    bun: `exec ${process.execPath} "$@"`,
    npx: 'exec "$@"',
    "clipslot-server": `exec ${process.execPath} ${join(ROOT, "src/main.ts")} "$@"`,
  };
  for (const [name, text] of Object.entries(commands))
    writeFileSync(join(bin, name), `#!/bin/sh\n${text}\n`, { mode: 0o755 });

  return async (name: string, more: Record<string, string> = {}): Promise<string> => {
    let script = readmeBlocks(README)
      .filter(({ mark }) => mark === `run: ${name}`)
      .map(({ text }) => text)
      .join("\n");
    expect(script).not.toBe("");
    for (const [told, here] of Object.entries(addresses)) script = script.replaceAll(told, here);
    const child = Bun.spawn(["bash", "-euo", "pipefail", "-c", script], {
      cwd: folder,
      env: { ...env, ...more, PATH: `${bin}:${dirname(process.execPath)}:${process.env["PATH"]}`, HOME: folder },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [output, complaints, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    if (code !== 0)
      throw new Error(`the block "${name}" of README.md failed with code ${code}:\n${output}\n${complaints}`);
    return output;
  };
}
