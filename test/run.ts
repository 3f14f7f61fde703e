/**
 * Runs the tests with one PostgreSQL server for all of their processes. Arguments go to `bun test`, for instance a file
 * name. TEST_DATABASE_URL names a server to use in its place.
 */
import { startPostgres } from "./postgres.ts";

/** For a loaded machine: tests wait for events, so on an idle one none comes near it. */
const TIMEOUT_MS = 30_000;

await using server = process.env["TEST_DATABASE_URL"] ? undefined : await startPostgres({ fsync: false });

const tests = Bun.spawn(
  [process.execPath, "test", "--no-orphans", "--parallel", `--timeout=${TIMEOUT_MS}`, ...process.argv.slice(2)],
  {
    env: { ...process.env, ...(server && { TEST_DATABASE_URL: server.url }) },
    stdio: ["inherit", "inherit", "inherit"],
  },
);
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => tests.kill(signal));
process.exitCode = await tests.exited;
