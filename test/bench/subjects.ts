/** What is measured, and what it is measured against: each a process of its own on a free port. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startChildServer } from "../child.ts";
import { startPostgres } from "../postgres.ts";

export interface Subject extends AsyncDisposable {
  readonly name: string;
  readonly url: string;
  readonly pid: number;
  /** "none": a yardstick without accounts. */
  readonly accounts: "clipslot" | "none";
}

/** The server under test on SQLite, on a real disk. */
export async function clipslotOnSqlite(env: Record<string, string> = {}): Promise<Subject> {
  const dataDir = mkdtempSync(join(tmpdir(), "clipslot-bench-"));
  const server = await startChildServer({ DATA_DIR: dataDir, ...env });
  return {
    name: "sqlite",
    url: server.url,
    pid: server.pid,
    accounts: "clipslot",
    async [Symbol.asyncDispose]() {
      await server.kill("SIGTERM");
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

/** The server under test on a PostgreSQL that really syncs; several instances share one. */
export async function clipslotOnPostgres(
  instances = 1,
): Promise<{ subjects: Subject[]; databaseUrl: string } & AsyncDisposable> {
  const postgres = await startPostgres({ fsync: true });
  const env = { DATABASE_URL: postgres.url, JWT_SECRET: "bench-0123456789-abcdefghijklmnopqrst" };
  const servers = await Promise.all(Array.from({ length: instances }, () => startChildServer(env)));
  return {
    databaseUrl: postgres.url,
    subjects: servers.map((server) => ({
      name: "postgres",
      url: server.url,
      pid: server.pid,
      accounts: "clipslot" as const,
      [Symbol.asyncDispose]: async () => void (await server.kill("SIGTERM")),
    })),
    async [Symbol.asyncDispose]() {
      for (const server of servers) await server.kill("SIGTERM");
      await postgres[Symbol.asyncDispose]();
    },
  };
}

/** A yardstick: the bare minimum in Bun that moves the same bytes and stores nothing. */
export async function yardstick(): Promise<Subject> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "yardstick.ts")], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  return {
    name: "bare",
    url: new TextDecoder().decode(value).trim(),
    pid: child.pid,
    accounts: "none",
    async [Symbol.asyncDispose]() {
      child.kill();
      await child.exited;
    },
  };
}

/** Resident memory of a process, in bytes (proc(5), statm). */
export async function residentBytes(pid: number): Promise<number> {
  const statm = await Bun.file(`/proc/${pid}/statm`).text();
  return Number(statm.split(" ")[1]) * 4096;
}

/** Processor seconds a process has used (proc(5), stat). */
export async function processorSeconds(pid: number): Promise<number> {
  const stat = await Bun.file(`/proc/${pid}/stat`).text();
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
