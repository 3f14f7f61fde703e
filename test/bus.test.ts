import { expect, test } from "bun:test";
import { memoryBus, type MemoryMedium } from "../src/bus/memory.ts";
import { postgresBus } from "../src/bus/postgres.ts";
import { loadConfig } from "../src/config.ts";
import { createLogger } from "../src/log.ts";
import { busContract, changes, listener, type BusMedium } from "./bus-contract.ts";
import { createTestDatabase } from "./postgres.ts";

const silent = createLogger({ level: "error", format: "json", write: () => {} });

busContract("memory", () => {
  const medium: MemoryMedium = new Set();
  return Promise.resolve({ open: () => memoryBus(medium), [Symbol.asyncDispose]: () => Promise.resolve() });
});

busContract("postgres", openPostgresMedium);

test("postgres: after its listener's connection was killed, a bus says that messages may have been missed, and hears again", async () => {
  await using medium = await openPostgresMedium();
  await using teller = await listener(medium.open());
  await using other = await listener(medium.open());
  await other.gap(1); // the first connection
  await using sql = new Bun.SQL(medium.url);
  await sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`;
  await other.gap(2);
  const message = changes(crypto.randomUUID(), 9);
  // The teller's own connection was killed as well: what it tells before it is back may be lost.
  const telling = setInterval(() => teller.bus.tell(message), 50);
  try {
    expect(await other.next()).toEqual(message);
  } finally {
    clearInterval(telling);
  }
}, 40_000);

async function openPostgresMedium(): Promise<BusMedium & { url: string }> {
  const database = await createTestDatabase();
  const config = loadConfig({});
  return {
    url: database.url,
    open: () => postgresBus({ url: database.url, config, log: silent }),
    [Symbol.asyncDispose]: () => database.drop(),
  };
}
