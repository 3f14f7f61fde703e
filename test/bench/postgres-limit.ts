/**
 * What the database itself commits in the same shape: the batches that the server sends for 100 accounts, one after
 * the other on one connection, with nothing around them.
 */
import { loadConfig } from "../../src/config.ts";
import { openStorage } from "../../src/storage/open.ts";
import type { Write } from "../../src/storage/storage.ts";
import { median } from "./measure.ts";

const ACCOUNTS = 100;
const MEASURE_MS = 3_000;

/** @returns writes a second */
export async function postgresLimit(databaseUrl: string, rounds: number): Promise<number> {
  const storage = await openStorage(loadConfig({ DATABASE_URL: databaseUrl }));
  const blob = Buffer.from(crypto.getRandomValues(new Uint8Array(1_024))).toString("base64");
  const authors = await Promise.all(
    Array.from({ length: ACCOUNTS }, async () => {
      const [userId, deviceId] = [crypto.randomUUID() as string, crypto.randomUUID() as string];
      await storage.createUser({ id: userId, email: `${userId}@example.org`, passwordHash: "-", createdAt: 1 });
      const device = { userId, id: deviceId, name: "bench", deviceType: "bench", createdAt: 1, tokenExpiresAt: 2e12 };
      await storage.registerDevice(device, 50);
      return { userId, deviceId, tokenGeneration: 0 };
    }),
  );
  const rates: number[] = [];
  let timestamp = 1;
  for (let count = 0; count < rounds; count += 1) {
    let writes = 0;
    const started = performance.now();
    while (performance.now() - started < MEASURE_MS) {
      timestamp += 1;
      const batch = authors.map((author): Write => ({
        kind: "slot",
        author,
        slotNumber: 1,
        blob,
        timestamp,
        baseSeq: null,
      }));
      await storage.applyWrites(batch, { historyItems: 1_000, accountBytes: 2 ** 28 }, Date.now());
      writes += batch.length;
    }
    rates.push((writes / (performance.now() - started)) * 1000);
  }
  await storage.close();
  return median(rates);
}
