/**
 * Builds the server as one executable file: for this machine, or with --all for every system there are releases for.
 *
 *   bun src/build.ts [--all] [--outfile FILE]
 *
 * For other systems Bun fetches its own executable from the npm registry, in the version that runs this.
 */
import { mkdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { describeCheckout, VERSION } from "./version.ts";

const ROOT = join(import.meta.dir, "..");
const DIST = join(ROOT, "dist");

const TARGETS = [
  "bun-linux-x64",
  "bun-linux-x64-musl",
  "bun-linux-arm64",
  "bun-linux-arm64-musl",
  "bun-darwin-x64",
  "bun-darwin-arm64",
  "bun-windows-x64",
] as const satisfies Bun.Build.CompileTarget[];

const { values } = parseArgs({
  options: { all: { type: "boolean", default: false }, outfile: { type: "string" } },
});
// An image is built without git: its commit comes from outside.
const commit = process.env["COMMIT"] ?? describeCheckout(ROOT);
console.log(`clipslot-server ${VERSION} (${commit}), Bun ${Bun.version}`);

if (values.all) {
  const sums = [];
  for (const target of TARGETS) {
    const name = `clipslot-server-${target.replace("bun-", "")}${target.includes("windows") ? ".exe" : ""}`;
    await build(join(DIST, name), target);
    sums.push(`${await sha256(join(DIST, name))}  ${name}\n`);
  }
  await Bun.write(join(DIST, "SHA256SUMS"), sums.join(""));
} else {
  await build(values.outfile ?? join(DIST, "clipslot-server"));
}

async function build(outfile: string, target?: Bun.Build.CompileTarget): Promise<void> {
  const begun = performance.now();
  await mkdir(dirname(outfile), { recursive: true });
  const { outputs } = await Bun.build({
    // A thread starts from a file, so its code is an entry point too.
    entrypoints: [join(ROOT, "src/main.ts"), join(ROOT, "src/storage/sqlite/thread.ts")],
    root: join(ROOT, "src"),
    compile: {
      outfile,
      ...(target === undefined ? {} : { target }),
      // Otherwise the binary would read settings, and run code, from whatever folder it is started in.
      autoloadDotenv: false,
      autoloadBunfig: false,
    },
    minify: true,
    // What is loaded on demand is a file of its own, so that a start need not read it.
    splitting: true,
    // Parsing is half of what a start costs.
    bytecode: true,
    format: "esm",
    sourcemap: "linked",
    define: { CLIPSLOT_COMMIT: JSON.stringify(commit) },
  });
  // The maps are inside as well; nobody needs those that lie beside it.
  for (const { kind, path } of outputs) if (kind === "sourcemap") await rm(path, { force: true });
  const megabytes = (Bun.file(outfile).size / 1e6).toFixed(1);
  console.log(`${outfile}  ${megabytes} MB  ${((performance.now() - begun) / 1000).toFixed(1)} s`);
}

async function sha256(path: string): Promise<string> {
  const hasher = new Bun.CryptoHasher("sha256");
  for await (const chunk of Bun.file(path).stream()) hasher.update(chunk);
  return hasher.digest("hex");
}
