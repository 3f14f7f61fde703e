/** What README.md's plan for a million accounts reckons with: bytes on PostgreSQL's disk, and what waiting devices cost it. */
import { loadConfig } from "../../src/config.ts";
import { openStorage } from "../../src/storage/open.ts";
import type { Author, Storage, Write } from "../../src/storage/storage.ts";
import { startPostgres } from "../postgres.ts";
import type { Scenario } from "./bench.ts";
import { median, round } from "./measure.ts";

const ACCOUNTS = 5_000;
const ITEMS = 100_000;
const AT_ONCE = 500;
const LIMITS = { historyItems: 1_000_000, accountBytes: 2 ** 40 };
const LEASE_MS = 60_000;

export const capacity: Scenario = {
  title: "What an account and a waiting device cost PostgreSQL, at the storage port, one connection",
  async run(rounds) {
    await using postgres = await startPostgres({ fsync: true });
    await using sql = new Bun.SQL(postgres.url, { max: 1 });
    const storage = await openStorage(loadConfig({ DATABASE_URL: postgres.url, DATABASE_POOL_SIZE: "1" }));
    try {
      const size = async (): Promise<number> => {
        const [row] = await sql`SELECT pg_database_size(current_database())::float8 AS bytes`;
        return row.bytes;
      };
      const empty = await size();
      const authors: Author[] = [];
      for (let count = 0; count < ACCOUNTS; count += 1) authors.push(await newAuthor(storage));
      const registered = await size();
      for (let count = 0; count < ITEMS; count += AT_ONCE) {
        await storage.applyWrites(pushes(authors, count), LIMITS, Date.now());
      }
      const full = await size();
      const some = authors.slice(0, AT_ONCE);
      const presences = () =>
        some.map(({ userId, deviceId }) => ({
          userId,
          deviceId: deviceId ?? "",
          lastSeen: Date.now(),
          confirmedSeq: 0,
          connectedUntil: Date.now() + LEASE_MS,
        }));
      const perThousand = (operation: () => Promise<unknown>) => cost(rounds, operation);
      return {
        rows: [
          {
            "bytes an account with a device": round((registered - empty) / ACCOUNTS),
            "bytes an item of 1 KiB": round((full - registered) / ITEMS),
            "ms to look at 1,000 accounts": await perThousand(() =>
              storage.accountSeqs(some.map(({ userId }) => userId)),
            ),
            "ms to check 1,000 tokens": await perThousand(() => storage.deadAuthors(some)),
            "ms to say of 1,000 devices that they are here": await perThousand(() =>
              storage.recordPresence(presences()),
            ),
            "ms to go over 1,000 accounts for what is past its time": await perThousand(async () => {
              for (const { userId } of some)
                await storage.retain(userId, 1, { tombstonesBefore: 1, tombstones: 1, limit: 1 });
            }),
          },
        ],
      };
    } finally {
      await storage.close();
    }
  },
};

/** Milliseconds for 1,000, by what AT_ONCE take. */
async function cost(rounds: number, operation: () => Promise<unknown>): Promise<number> {
  const times: number[] = [];
  for (let count = 0; count < rounds * 10; count += 1) {
    const started = performance.now();
    await operation();
    times.push(performance.now() - started);
  }
  return round((median(times) * 1_000) / AT_ONCE, 2);
}

async function newAuthor(storage: Storage): Promise<Author> {
  const [userId, deviceId] = [crypto.randomUUID() as string, crypto.randomUUID() as string];
  await storage.createUser({ id: userId, email: `${userId}@example.org`, passwordHash: "-".repeat(97), createdAt: 1 });
  const device = { userId, id: deviceId, name: "a laptop", deviceType: "macos", createdAt: 1, tokenExpiresAt: 2e12 };
  await storage.registerDevice(device, 50);
  return { userId, deviceId, tokenGeneration: 0 };
}

/** One item for each of AT_ONCE accounts. */
function pushes(authors: readonly Author[], from: number): Write[] {
  const blob = () => Buffer.from(crypto.getRandomValues(new Uint8Array(1_024))).toString("base64");
  return Array.from({ length: AT_ONCE }, (_, index): Write => {
    const author = authors[(from + index) % authors.length];
    if (author === undefined) throw new Error("there are no accounts");
    return {
      kind: "history_push",
      author,
      id: crypto.randomUUID(),
      blob: blob(),
      contentHash: new Bun.CryptoHasher("sha256").update(crypto.randomUUID()).digest("hex"),
      createdAt: Date.now(),
      expiresAt: null,
    };
  });
}
