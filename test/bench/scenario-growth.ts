/** Growth: what an account or a database that has grown costs; flat is the goal. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadConfig } from "../../src/config.ts";
import { openStorage } from "../../src/storage/open.ts";
import type { Author, Storage, Write } from "../../src/storage/storage.ts";
import type { Scenario } from "./bench.ts";
import { median, round, type Row } from "./measure.ts";

const LIMITS = { historyItems: 1_000_000, accountBytes: 2 ** 40 };
const SAMPLES = 200;

export const growth: Scenario = {
  title: "Growth on SQLite: microseconds an operation, at the storage port",
  async run() {
    const dataDir = mkdtempSync(join(tmpdir(), "clipslot-growth-"));
    const storage = await openStorage(loadConfig({ DATA_DIR: dataDir }));
    try {
      const rows: Row[] = [];
      const author = await newAuthor(storage);
      let items = 0;
      for (const size of [1_000, 10_000, 100_000]) {
        for (; items < size; items += 500) await storage.applyWrites(pushes(author, 500), LIMITS, Date.now());
        rows.push({ case: `${size.toLocaleString("en")} items in one account`, ...(await costs(storage, author)) });
      }
      const fresh = await newAuthor(storage);
      for (let count = 0; count < 10_000; count += 1) await newAuthor(storage);
      await storage.applyWrites(pushes(fresh, 1_000), LIMITS, Date.now());
      rows.push({ case: "1,000 items, 10,000 accounts beside", ...(await costs(storage, fresh)) });
      return { rows };
    } finally {
      await storage.close();
      rmSync(dataDir, { recursive: true, force: true });
    }
  },
};

async function costs(storage: Storage, author: Author): Promise<Row> {
  const { userId } = author;
  const { seq } = (await storage.summary(userId)) ?? { seq: 0 };
  const newest = { offset: 0, before: null, maxBytes: 2 ** 20 };
  const [known] = (await storage.history(userId, { ...newest, limit: 1 })).items;
  if (known === undefined) throw new Error("the account is empty");
  return {
    "newest page (50)": await cost(() => storage.history(userId, { ...newest, limit: 50 })),
    push: await cost(() => storage.applyWrites(pushes(author, 1), LIMITS, Date.now())),
    duplicate: await cost(() =>
      storage.applyWrites([{ ...push(author), contentHash: known.contentHash }], LIMITS, Date.now()),
    ),
    "catch-up (10 missed)": await cost(() => storage.changesAfter(userId, seq - 10, { limit: 32, maxBytes: 2 ** 20 })),
  };
}

async function cost(operation: () => Promise<unknown>): Promise<number> {
  const times: number[] = [];
  for (let count = 0; count < SAMPLES; count += 1) {
    const started = performance.now();
    await operation();
    times.push((performance.now() - started) * 1000);
  }
  return round(median(times), 1);
}

async function newAuthor(storage: Storage): Promise<Author> {
  const [userId, deviceId] = [crypto.randomUUID() as string, crypto.randomUUID() as string];
  await storage.createUser({ id: userId, email: `${userId}@example.org`, passwordHash: "-", createdAt: 1 });
  const device = { userId, id: deviceId, name: "bench", deviceType: "bench", createdAt: 1, tokenExpiresAt: 2e12 };
  await storage.registerDevice(device, 50);
  return { userId, deviceId, tokenGeneration: 0 };
}

function push(author: Author) {
  const blob = Buffer.from(crypto.getRandomValues(new Uint8Array(256))).toString("base64");
  const [id, contentHash] = [crypto.randomUUID() as string, crypto.randomUUID() as string];
  return { kind: "history_push" as const, author, id, blob, contentHash, createdAt: Date.now(), expiresAt: null };
}

function pushes(author: Author, count: number): Write[] {
  return Array.from({ length: count }, () => push(author));
}
