/**
 * The load of the relay scenarios, in a process of its own: pairs of devices, one of which sends, the other receives.
 * Closed loop: the next message leaves when the last has arrived. Open loop (`rate` above 0): messages leave by the
 * clock, and a latency counts from when its message should have left, so that a stall is not hidden by the wait it
 * causes (coordinated omission). Prints one line of JSON.
 */
import { connect, createAccount, createDevice } from "../harness.ts";
import { percentile } from "./measure.ts";

interface Job {
  /** Sender's and receiver's instance; often the same. */
  urls: [string, string];
  accounts: "clipslot" | "none";
  protocol: 1 | 2;
  pairs: number;
  blobBytes: number;
  /** Messages a second over all pairs; 0: closed loop. */
  rate: number;
  warmUpMs: number;
  measureMs: number;
}

export interface RelayResult {
  relaysPerSecond: number;
  p50: number;
  p99: number;
  p999: number;
  /** The share of one processor that this load used: near 1, the load was the bottleneck. */
  loadProcessor: number;
}

if (import.meta.main) console.log(JSON.stringify(await run(JSON.parse(process.argv[2] ?? "{}"))));

async function run(job: Job): Promise<RelayResult> {
  const blob = Buffer.from(crypto.getRandomValues(new Uint8Array(Math.min(job.blobBytes, 65_536)))).toString("base64");
  const content = Buffer.alloc(job.blobBytes, Buffer.from(blob, "base64")).toString("base64");
  const head = `{"type":"slot_update","slot_number":1,"encrypted_blob":"${content}","timestamp":`;
  const latencies: number[] = [];
  let relays = 0;
  let going = true;

  const pairs: Awaited<ReturnType<typeof openPair>>[] = [];
  for (let index = 0; index < job.pairs; index += 1) pairs.push(await openPair(job, index));
  for (const pair of pairs) {
    let timestamp = 1;
    const due: number[] = [];
    pair.send = (dueAt) => {
      due.push(dueAt);
      timestamp += 1;
      pair.sender.send(`${head}${timestamp}}`);
    };
    pair.receiver.onmessage = ({ data }) => {
      const message = JSON.parse(String(data));
      if (message.type !== "slot_updated") return;
      relays += 1;
      const now = performance.now();
      const dueAt = due.shift();
      if (dueAt !== undefined) latencies.push(now - dueAt);
      if (going && job.rate === 0) pair.send(now);
    };
  }

  const start = performance.now();
  if (job.rate === 0) for (const pair of pairs) pair.send(performance.now());
  else void sendByTheClock();
  await Bun.sleep(job.warmUpMs);
  relays = 0;
  latencies.length = 0;
  const measured = performance.now();
  const processor = process.cpuUsage();
  await Bun.sleep(job.measureMs);
  const seconds = (performance.now() - measured) / 1000;
  const used = process.cpuUsage(processor);
  going = false;
  latencies.sort((left, right) => left - right);
  const result = {
    relaysPerSecond: relays / seconds,
    p50: percentile(latencies, 0.5),
    p99: percentile(latencies, 0.99),
    p999: percentile(latencies, 0.999),
    loadProcessor: (used.user + used.system) / 1e6 / seconds,
  };
  for (const pair of pairs) {
    pair.sender.terminate();
    pair.receiver.terminate();
  }
  return result;

  async function sendByTheClock(): Promise<void> {
    for (let count = 0; going;) {
      const until = ((performance.now() - start) / 1000) * job.rate;
      for (; count < until; count += 1) pairs[count % pairs.length]?.send(start + (count / job.rate) * 1000);
      await Bun.sleep(1);
    }
  }
}

async function openPair(job: Job, index: number) {
  const [from, to] = job.urls;
  const address = async (): Promise<[string, string]> => {
    if (job.accounts === "none") return [`${from}/?topic=${index}`, `${to}/?topic=${index}`];
    const account = await createAccount(connect(from));
    const protocol = job.protocol === 2 ? "&protocol=2" : "";
    const of = async (url: string) =>
      `${url}/api/sync/ws?token=${(await createDevice(connect(url), account)).token}${protocol}`;
    return [await of(from), await of(to)];
  };
  const [sender, receiver] = await Promise.all((await address()).map(openSocket));
  if (sender === undefined || receiver === undefined) throw new Error("a socket did not open");
  return { sender, receiver, send: (_dueAt: number) => {} };
}

function openSocket(url: string): Promise<WebSocket> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url.replace("http", "ws"));
    socket.onopen = () => resolve(socket);
    socket.onclose = ({ code }) => reject(new Error(`a socket closed with ${code}`));
  });
}

/** Runs a job in a process of its own. */
export async function relayLoad(job: Omit<Job, "warmUpMs" | "measureMs"> & Partial<Job>): Promise<RelayResult> {
  const full: Job = { warmUpMs: 1_000, measureMs: 3_000, ...job };
  const child = Bun.spawn([process.execPath, import.meta.path, JSON.stringify(full)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const output = await new Response(child.stdout).text();
  if ((await child.exited) !== 0) throw new Error("the load failed");
  return JSON.parse(output);
}
