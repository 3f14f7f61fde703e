/** HTTP requests as fast as they are answered, over so many connections, in a process of its own. Prints JSON. */

interface Job {
  url: string;
  method: string;
  headers: Record<string, string>;
  /** Sent as it is; `%ID%` becomes a new id each time. */
  body?: string;
  connections: number;
  measureMs: number;
}

if (import.meta.main) console.log(JSON.stringify(await run(JSON.parse(process.argv[2] ?? "{}"))));

async function run(job: Job) {
  let requests = 0;
  let going = true;
  const loops = Array.from({ length: job.connections }, async () => {
    while (going) {
      const body = job.body?.replaceAll("%ID%", () => crypto.randomUUID());
      const response = await fetch(job.url, {
        method: job.method,
        headers: job.headers,
        ...(body === undefined ? {} : { body }),
      });
      await response.arrayBuffer();
      if (!response.ok) throw new Error(`${job.url} answered ${response.status}`);
      requests += 1;
    }
  });
  await Bun.sleep(500);
  requests = 0;
  const started = performance.now();
  const processor = process.cpuUsage();
  await Bun.sleep(job.measureMs);
  const seconds = (performance.now() - started) / 1000;
  const used = process.cpuUsage(processor);
  const result = { requestsPerSecond: requests / seconds, loadProcessor: (used.user + used.system) / 1e6 / seconds };
  going = false;
  await Promise.all(loops);
  return result;
}

/** Runs a job in a process of its own. */
export async function httpLoad(
  job: Omit<Job, "measureMs"> & Partial<Job>,
): Promise<{ requestsPerSecond: number; loadProcessor: number }> {
  const child = Bun.spawn([process.execPath, import.meta.path, JSON.stringify({ measureMs: 2_000, ...job })], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const output = await new Response(child.stdout).text();
  if ((await child.exited) !== 0) throw new Error("the load failed");
  return JSON.parse(output);
}
