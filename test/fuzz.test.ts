/** Two minutes of what `bun test/fuzz.ts` does at length, on both databases at once. */
import { expect, test } from "bun:test";
import { DATABASES } from "./harness.ts";
import { fuzz } from "./fuzz.ts";

const MILLISECONDS = 120_000;

test.concurrent.each([...DATABASES])(
  "random traffic, right and wrong, finds no fault on %s",
  async (database) => {
    const report = await fuzz({ milliseconds: MILLISECONDS, seed: 20_240_501, database });
    expect(report.faults).toEqual([]);
    expect(report.requests).toBeGreaterThan(100);
    expect(report.messages).toBeGreaterThan(100);
    expect(report.statuses).toMatchObject({
      200: expect.any(Number),
      400: expect.any(Number),
      401: expect.any(Number),
    });
  },
  MILLISECONDS + 90_000,
);
