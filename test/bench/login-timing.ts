/**
 * Whether a login tells who has an account by the time that it takes.
 *
 *   bun test/bench/login-timing.ts [--logins 200]
 *
 * Known and unknown addresses take turns, so what the machine does besides moves both medians alike.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startChildServer } from "../child.ts";
import { connect, createAccount } from "../harness.ts";

const WARM_UP = 20;
const { values } = parseArgs({ options: { logins: { type: "string", default: "200" } } });

const dataDir = mkdtempSync(join(tmpdir(), "clipslot-bench-"));
const child = await startChildServer({ DATA_DIR: dataDir, LOG_LEVEL: "info" });
const server = connect(child.url);
const { email } = await createAccount(server);

const times: Record<"known" | "unknown", number[]> = { known: [], unknown: [] };
for (let count = 0; count < WARM_UP + Number(values.logins); count += 1) {
  for (const kind of count % 2 === 0 ? (["known", "unknown"] as const) : (["unknown", "known"] as const)) {
    const address = kind === "known" ? email : `${crypto.randomUUID()}@example.org`;
    const started = performance.now();
    await server.json("POST", "/api/auth/login", { body: { email: address, password: "wrong password" }, status: 401 });
    if (count >= WARM_UP) times[kind].push(performance.now() - started);
  }
}
await child.kill("SIGTERM");
rmSync(dataDir, { recursive: true, force: true });

const known = median(times.known);
const unknown = median(times.unknown);
console.log(`known   ${known.toFixed(2)} ms (median of ${times.known.length})`);
console.log(`unknown ${unknown.toFixed(2)} ms (median of ${times.unknown.length})`);
console.log(`apart   ${((Math.abs(known - unknown) / known) * 100).toFixed(1)} %`);

function median(numbers: number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;
}
