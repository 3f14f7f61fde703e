/** What a seed means: who takes part, what they do, and where the network breaks. Nothing here knows the time. */
import type { CutPlan } from "../proxy.ts";

export type Random = () => number;

/** mulberry32: the same numbers for the same seed, everywhere. */
export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** What an old device does about its own update of a slot of which it has been sent another since. */
const RESENDING = ["never", "with its own shown", "blindly"] as const;
export type Resending = (typeof RESENDING)[number];

export interface DevicePlan {
  /** old: protocol 1, applies every slot_updated as it comes. new: the reference client. */
  kind: "old" | "new";
  /** How wrong its clock is. */
  clockOffsetMs: number;
  /** Old devices. */
  resends: Resending;
}

export type Step =
  | { act: "set"; device: number; slot: number; bytes: number }
  | { act: "clear"; device: number; slot: number }
  /** `again`: content that was pushed before, under a new id. */
  | { act: "push"; device: number; bytes: number; again: boolean }
  | { act: "burst"; device: number; count: number }
  /** `pick` says which of the items it sees, from 0 to 1. */
  | { act: "delete"; device: number; pick: number }
  | { act: "rest_put"; slot: number; bytes: number; timed: boolean }
  | { act: "rest_clear"; slot: number }
  | { act: "rest_push"; count: number }
  | { act: "rest_delete"; pick: number }
  | { act: "cut"; device: number; plan: CutPlan }
  | { act: "offline"; device: number }
  | { act: "online"; device: number }
  /** A new device of the reference client ends and starts again from what it saved. */
  | { act: "reload"; device: number }
  | { act: "restart_server" }
  | { act: "pause"; milliseconds: number };

/** What happens to the server while the seed runs. */
export type Weather = "steady" | "restarts" | "kills";

export interface Schedule {
  seed: number;
  weather: Weather;
  devices: DevicePlan[];
  steps: Step[];
}

const MAX_CLOCK_OFFSET_MS = 600_000;
const SLOTS = 4; // few, so that writes meet

/** Of twenty seeds one has a server that restarts, one has a server that is killed. */
export function weatherOf(seed: number): Weather {
  return seed % 20 === 0 ? "kills" : seed % 20 === 7 ? "restarts" : "steady";
}

export function createSchedule(seed: number): Schedule {
  const random = createRandom(seed);
  const weather = weatherOf(seed);
  const devices = Array.from({ length: 2 + below(random, 3) }, (): DevicePlan => {
    const kind = random() < 0.5 ? "old" : "new";
    return {
      kind,
      clockOffsetMs: drawClockOffset(random),
      resends: RESENDING[below(random, RESENDING.length)] ?? "never",
    };
  });
  const steps = Array.from({ length: 15 + below(random, 30) }, () => drawStep(random, devices));
  if (weather !== "steady") {
    for (let count = 1 + below(random, 2); count > 0; count -= 1) {
      steps.splice(below(random, steps.length), 0, { act: "restart_server" });
    }
  }
  return { seed, weather, devices, steps };
}

/** The plan of a participant's n-th connection: half of them break off, some of those during the handshake. */
export function drawCutPlan(random: Random): CutPlan {
  const none = Number.POSITIVE_INFINITY;
  const bytes = () => Math.floor(Math.exp(5 + random() * 6));
  const draw = random();
  if (draw < 0.5) return { up: none, down: none };
  return draw < 0.75 ? { up: bytes(), down: none } : { up: none, down: bytes() };
}

export function below(random: Random, bound: number): number {
  return Math.floor(random() * bound);
}

function drawClockOffset(random: Random): number {
  return random() < 0.3 ? 0 : Math.round((random() * 2 - 1) * MAX_CLOCK_OFFSET_MS);
}

function drawStep(random: Random, devices: DevicePlan[]): Step {
  const device = below(random, devices.length);
  const slot = 1 + below(random, SLOTS);
  const isNew = devices[device]?.kind === "new";
  const draw = random() * 100;
  if (draw < 30) return { act: "set", device, slot, bytes: drawBytes(random) };
  if (draw < 42) return { act: "push", device, bytes: drawBytes(random), again: random() < 0.2 };
  if (draw < 46) return { act: "burst", device, count: 20 + below(random, 40) };
  if (draw < 50) return isNew ? { act: "clear", device, slot } : { act: "rest_clear", slot };
  if (draw < 55) return isNew ? { act: "delete", device, pick: random() } : { act: "rest_delete", pick: random() };
  if (draw < 61) return { act: "rest_put", slot, bytes: drawBytes(random), timed: random() < 0.5 };
  if (draw < 64) return { act: "rest_push", count: 1 + below(random, 3) };
  if (draw < 66) return { act: "rest_clear", slot };
  if (draw < 74) return { act: "cut", device, plan: { up: below(random, 3) * 100, down: below(random, 3) * 100 } };
  if (draw < 79) return { act: "offline", device };
  if (draw < 86) return { act: "online", device };
  if (draw < 88) return isNew ? { act: "reload", device } : { act: "cut", device, plan: { up: 0, down: 0 } };
  return { act: "pause", milliseconds: below(random, 5) };
}

/** Most clips are short; some fill several segments. */
function drawBytes(random: Random): number {
  return random() < 0.9 ? 16 + below(random, 200) : 10_000 + below(random, 50_000);
}
