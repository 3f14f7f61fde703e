/** Nothing is missed, whatever breaks: simulation.ts says what happens, simulation/checks.ts what must hold. */
import { describe, expect, test } from "bun:test";
import { simulate } from "./simulation.ts";
import { createRandom, createSchedule } from "./simulation/schedule.ts";

/** A slow machine runs fewer than `seeds`, but not fewer than `atLeast`. */
const SIZES = {
  sqlite: { seeds: 500, atLeast: 100, milliseconds: 45_000 },
  postgres: { seeds: 150, atLeast: 40, milliseconds: 20_000 },
} as const;

describe("simulated devices over a network that breaks, a server that restarts and is killed", () => {
  for (const database of ["sqlite", "postgres"] as const) {
    const { seeds, atLeast, milliseconds } = SIZES[database];
    test(`[R1] [R2] [R3] [R4] [W1] [W6] [W8] [W9] [P4] [P5] every device ends with what the server has, on ${database}`, async () => {
      const results = await simulate(
        Array.from({ length: seeds }, (_, index) => index + 1),
        { database, isEnough: (done, spent) => done >= atLeast && spent > milliseconds },
      );
      const failures = results.flatMap(({ seed, failure }) =>
        failure === undefined
          ? []
          : [`${failure} (again: bun test/simulation.ts --seed ${seed} --database ${database})`],
      );
      expect(failures).toEqual([]);
      expect(results.length).toBeGreaterThanOrEqual(atLeast);
    }, 240_000);
  }

  test("a seed means the same schedule every time", () => {
    for (const seed of [1, 7, 20]) expect(createSchedule(seed)).toEqual(createSchedule(seed));
    const random = createRandom(42);
    expect([random(), random(), random()]).toEqual([0.6011037519201636, 0.44829055899754167, 0.8524657934904099]);
  });
});
