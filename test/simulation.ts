/**
 * Devices of both kinds write, clear and delete, with wrong clocks, over connections that break at any byte, to a server
 * that restarts and is killed. When all is quiet every device shows what the server has, and nothing that was promised
 * is missing. A seed decides everything but the timing.
 *
 *     bun test/simulation.ts --seed 17                 one seed, with all that happened when it fails
 *     bun test/simulation.ts --seed 1 --count 5000     many, side by side (--traces FOLDER keeps what failed)
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { DatabaseKind } from "./harness.ts";
import { startProxy, type Proxy } from "./proxy.ts";
import { checkNewDevice, checkOldDevice, checkPromises } from "./simulation/checks.ts";
import { oneAtATime, startHost, type Host } from "./simulation/host.ts";
import { startNewDevice, type NewDevice } from "./simulation/new-device.ts";
import { startOldDevice, type OldDevice } from "./simulation/old-device.ts";
import {
  below,
  createRandom,
  createSchedule,
  drawCutPlan,
  weatherOf,
  type Schedule,
  type Step,
} from "./simulation/schedule.ts";
import { ask, fail, readTruth, type Truth, type World } from "./simulation/world.ts";

/** So few that items leave unasked, in half of the seeds. */
const SMALL_HISTORY_LIMIT = 12;
const QUIET_ROUNDS = 30;
const QUIET_DEADLINE_MS = 60_000;
const TRACE_LINES = 5_000;

type Device = OldDevice | NewDevice;

export interface SeedResult {
  seed: number;
  failure: string | undefined;
  trace: string[];
}

/** Runs seeds side by side; those of one weather share a server. */
export async function simulate(
  seeds: readonly number[],
  { database = "sqlite", concurrency = 20, isEnough = () => false, onResult = () => {} }: SimulateOptions = {},
): Promise<SeedResult[]> {
  const results: SeedResult[] = [];
  const started = performance.now();
  const groups = Map.groupBy(seeds, (seed) => `${weatherOf(seed)} ${evicts(seed)}`);
  await Promise.all(
    [...groups.values()].map(async (group) => {
      const [first = 0] = group;
      const env: Record<string, string> = evicts(first) ? { HISTORY_LIMIT: String(SMALL_HISTORY_LIMIT) } : {};
      await using host = await startHost(weatherOf(first), database, env);
      // Each seed of bad weather disturbs all that share its server: few at a time, or none gets quiet.
      const width = weatherOf(first) === "steady" ? concurrency : Math.min(concurrency, 3);
      // A password takes tens of milliseconds to hash: a crowd that signs up at once would only queue at the server.
      const newAccount = oneAtATime(() => signUp(host));
      const queue = [...group];
      const work = async () => {
        for (let seed = queue.shift(); seed !== undefined; seed = queue.shift()) {
          if (isEnough(results.length, performance.now() - started)) return;
          const result = await runSeed(seed, host, newAccount);
          results.push(result);
          onResult(result);
        }
      };
      await Promise.all(Array.from({ length: width }, work));
    }),
  );
  return results;
}

export interface SimulateOptions {
  database?: DatabaseKind;
  /** Seeds at a time on one server. */
  concurrency?: number;
  /** No further seed begins when so many are done after so long. */
  isEnough?: (done: number, milliseconds: number) => boolean;
  onResult?: (result: SeedResult) => void;
}

function evicts(seed: number): boolean {
  return seed % 2 === 1;
}

async function runSeed(seed: number, host: Host, newAccount: () => Promise<Account>): Promise<SeedResult> {
  const started = performance.now();
  const trace: string[] = [];
  const note = (line: string) => {
    if (trace.length < TRACE_LINES) trace.push(`${(performance.now() - started).toFixed(1)} ms: ${line}`);
  };
  try {
    await using cast = await assemble(createSchedule(seed), host, await newAccount(), note);
    for (const [index, step] of cast.schedule.steps.entries()) {
      note(JSON.stringify(step));
      await cast.perform(step, index);
    }
    await cast.comeToRest();
    return { seed, failure: undefined, trace };
  } catch (error) {
    return { seed, failure: error instanceof Error ? error.message : String(error), trace };
  }
}

/** An account, its devices (each starts when it first does something), and somebody who uses REST alone. */
async function assemble(schedule: Schedule, host: Host, { token, cursor }: Account, note: (line: string) => void) {
  const { seed } = schedule;
  const random = createRandom(seed ^ 0x5eed);
  const world: World = { seed, host, token, written: new Set(), deletions: new Set(), promised: [], note };
  const port = () => Number(new URL(host.url()).port);
  const proxies: Proxy[] = [];
  const openProxy = async (): Promise<Proxy> => {
    const draw = createRandom(seed * 31 + proxies.length);
    const proxy = await startProxy(port, () => drawCutPlan(draw));
    proxies.push(proxy);
    return proxy;
  };
  const restProxy = await openProxy();
  const deviceProxies: Proxy[] = [];
  for (const _ of schedule.devices) deviceProxies.push(await openProxy());
  const devices = new Map<number, Device>();
  const hashes: string[] = [];
  const pushedIds: string[] = [];
  const errands = new Set<Promise<void>>();
  const errandFaults: unknown[] = [];

  return {
    schedule,
    perform,
    comeToRest,
    async [Symbol.asyncDispose]() {
      await Promise.all([...devices.values()].map((device) => device.stop()));
      await Promise.all(proxies.map((proxy) => proxy[Symbol.asyncDispose]()));
    },
  };

  async function perform(step: Step, index: number): Promise<void> {
    const device = "device" in step ? await joined(step.device) : undefined;
    const content = (bytes: number) => newContent(`${seed} ${index}`, bytes);
    switch (step.act) {
      case "set":
        return device?.set(step.slot, content(step.bytes));
      case "clear":
        return device?.kind === "new" ? device.clear(step.slot) : undefined;
      case "push":
        return push(device, content(step.bytes), step.again);
      case "burst":
        for (let count = 0; count < step.count; count += 1)
          push(device, newContent(`${seed} ${index} ${count}`, 40), false);
        return;
      case "delete": {
        const ids = device?.kind === "new" ? device.client.history().map(({ id }) => id) : [];
        const id = ids[below(() => step.pick, ids.length)];
        if (id === undefined || device?.kind !== "new") return;
        world.deletions.add(id);
        return device.delete(id);
      }
      case "rest_put":
        return runErrand(() => restPut(step.slot, content(step.bytes), step.timed));
      case "rest_clear":
        return runErrand(async () => void (await asAccount("DELETE", `/api/sync/slots/${step.slot}`)));
      case "rest_push":
        return runErrand(() =>
          restPush(Array.from({ length: step.count }, (_, each) => newContent(`${seed} ${index} ${each}`, 60))),
        );
      case "rest_delete": {
        const id = pushedIds[below(() => step.pick, pushedIds.length)];
        if (id === undefined) return;
        world.deletions.add(id);
        return runErrand(async () => void (await asAccount("DELETE", `/api/sync/history/${id}`)));
      }
      case "cut":
        return device?.proxy.cutAfter(step.plan);
      case "offline":
        return device?.proxy.block();
      case "online":
        return device?.proxy.unblock();
      case "reload":
        return device?.kind === "new" ? device.reload() : undefined;
      case "restart_server":
        return host.restart();
      case "pause":
        return Bun.sleep(step.milliseconds);
    }
  }

  async function joined(index: number): Promise<Device> {
    const known = devices.get(index);
    if (known !== undefined) return known;
    const plan = schedule.devices[index];
    const proxy = deviceProxies[index];
    if (plan === undefined || proxy === undefined) throw new Error(`there is no device ${index}`);
    const name = `device ${index} (${plan.kind})`;
    const answer = await ask(host.url, "POST", "/api/auth/device", { token, body: { name, device_type: plan.kind } });
    const now = () => Date.now() + plan.clockOffsetMs;
    const options = { proxy, token: answer.body.token, now, random, resends: plan.resends };
    const device = await (plan.kind === "old" ? startOldDevice : startNewDevice)(world, name, options);
    devices.set(index, device);
    return device;
  }

  function newContent(name: string, bytes: number): string {
    const text = Buffer.from(name.padEnd(bytes, "·")).toString("base64");
    world.written.add(text);
    return text;
  }

  function push(device: Device | undefined, content: string, again: boolean): void {
    const id = crypto.randomUUID();
    const hash = again ? hashes[below(random, hashes.length)] : undefined;
    const contentHash = hash ?? crypto.randomUUID();
    hashes.push(contentHash);
    pushedIds.push(id);
    device?.push(id, content, contentHash);
  }

  // REST

  function runErrand(errand: () => Promise<void>): void {
    const running = errand()
      .catch((error: unknown) => void errandFaults.push(error))
      .finally(() => errands.delete(running));
    errands.add(running);
  }

  function asAccount(method: string, path: string, body?: unknown) {
    return ask(() => restProxy.url, method, path, { token, body });
  }

  async function restPut(slot: number, content: string, timed: boolean): Promise<void> {
    const body = { encrypted_blob: content, ...(timed && { timestamp: Date.now() }) };
    const answer = await asAccount("PUT", `/api/sync/slots/${slot}`, body);
    if (answer.status !== 200) fail(world, `a PUT answered ${answer.status}`);
    if (answer.body.result !== "applied") return;
    world.promised.push({ kind: "slot", key: String(slot), content, seq: answer.body.seq });
  }

  async function restPush(contents: string[]): Promise<void> {
    const items = contents.map((content) => ({
      id: crypto.randomUUID(),
      encrypted_blob: content,
      content_hash: crypto.randomUUID(),
    }));
    pushedIds.push(...items.map(({ id }) => id));
    const { status, body } = await asAccount("POST", "/api/sync/history", items);
    if (status !== 200 && status !== 201) fail(world, `a POST answered ${status}`);
    for (const [index, { id, seq, result }] of body.entries()) {
      if (result === "applied") world.promised.push({ kind: "push", key: id, content: contents[index] ?? "", seq });
    }
  }

  // The end

  async function comeToRest(): Promise<void> {
    for (const index of schedule.devices.keys()) await joined(index);
    for (const proxy of proxies) proxy.calm();
    for (let round = 0; round < QUIET_ROUNDS; round += 1) {
      const truth = await quietRound();
      if (truth === undefined) continue;
      checkPromises(world, truth, evicts(seed));
      for (const device of devices.values()) {
        if (device.kind === "new") checkNewDevice(world, device, truth);
        else checkOldDevice(world, device, truth);
      }
      return;
    }
    fail(world, `it did not come to rest in ${QUIET_ROUNDS} rounds`);
  }

  /** @returns what stands; undefined when somebody was cut off meanwhile (another seed's server fault), and it takes another round */
  async function quietRound(): Promise<Truth | undefined> {
    await Promise.all(errands);
    if (errandFaults.length > 0) throw errandFaults[0];
    const all = [...devices.values()];
    await Promise.all(
      all.map((device) =>
        until(device, () => device.isConnected && (device.kind === "old" || device.client.queued === 0)),
      ),
    );
    const breaks = all.map((device) => device.breaks);
    const unbroken = () => all.every((device, index) => device.breaks === breaks[index]);

    // Every write of theirs is decided before this is.
    const olds = all.filter((device) => device.kind === "old");
    const decided = await Promise.all(
      olds.map((device) => device.settle({ type: "history_delete", id: crypto.randomUUID() })),
    );
    if (decided.includes(false)) return undefined;
    // The last change of all: whoever has it has what was before it.
    const marker = crypto.randomUUID();
    const newest = new Date(Date.now() + 59_000).toISOString(); // or it may be the first to be evicted
    const content = newContent(`marker ${marker}`, 60);
    const body = { id: marker, encrypted_blob: content, content_hash: marker, created_at: newest };
    await ask(host.url, "POST", "/api/sync/history", { token, body });
    const truth = await readTruth(world, cursor);
    const hasAll = (device: Device) =>
      device.kind === "old" ? device.history.has(marker) : device.streamSeq >= truth.seq;
    await Promise.all(all.map((device) => until(device, () => hasAll(device) || !unbroken())));
    await Promise.all(olds.map((device) => device.settle({ type: "no_such_type" })));
    return unbroken() ? truth : undefined;
  }

  async function until(device: Device, condition: () => boolean): Promise<void> {
    const deadline = performance.now() + QUIET_DEADLINE_MS;
    while (!condition()) {
      if (performance.now() > deadline) fail(world, `${device.name} did not get there in ${QUIET_DEADLINE_MS} ms`);
      await Promise.race([device.changed(), Bun.sleep(500)]);
    }
  }
}

interface Account {
  token: string;
  /** From before anything was written. */
  cursor: string;
}

async function signUp(host: Host): Promise<Account> {
  const credentials = { email: `${crypto.randomUUID()}@example.org`, password: "test123" };
  const registered = await ask(host.url, "POST", "/api/auth/register", { body: credentials });
  // The answer to an earlier try may have been lost.
  const { body } =
    registered.status === 409 ? await ask(host.url, "POST", "/api/auth/login", { body: credentials }) : registered;
  const changes = await ask(host.url, "GET", "/api/sync/changes", { token: body.token });
  return { token: body.token, cursor: changes.body.cursor };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seed: { type: "string", default: "1" },
      count: { type: "string", default: "1" },
      concurrency: { type: "string", default: "20" },
      database: { type: "string", default: "sqlite" },
      traces: { type: "string" },
    },
  });
  const seeds = Array.from({ length: Number(values.count) }, (_, index) => Number(values.seed) + index);
  const started = performance.now();
  let done = 0;
  let failed = 0;
  await simulate(seeds, {
    database: values.database === "postgres" ? "postgres" : "sqlite",
    concurrency: Number(values.concurrency),
    onResult({ seed, failure, trace }) {
      done += 1;
      if (done % 100 === 0)
        console.log(`${done} seeds in ${((performance.now() - started) / 1000).toFixed(1)} s, ${failed} failed`);
      if (failure === undefined) return;
      failed += 1;
      if (seeds.length === 1) console.log(trace.join("\n"));
      if (values.traces !== undefined) writeFileSync(join(values.traces, `seed-${seed}.txt`), trace.join("\n"));
      console.log(failure);
    },
  });
  console.log(`${done} seeds in ${((performance.now() - started) / 1000).toFixed(1)} s, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

if (import.meta.main) await main();
