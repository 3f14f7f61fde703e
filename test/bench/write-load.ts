/**
 * The load of the backup scenario, in a process of its own: so many history items a second over WebSockets, until its
 * standard input ends. Prints "writing", and at the end one line of JSON.
 */
import { connect } from "../harness.ts";
import { startLoad } from "../load.ts";

export interface WriteLoadResult {
  /** Every acknowledged write. */
  writes: AcknowledgedWrite[];
  stalls: Stall[];
}

/** Times are milliseconds since 1970, so that processes can compare them. */
interface AcknowledgedWrite {
  id: string;
  at: number;
  waitedMs: number;
}

/** A moment at which this process itself came late, which its writes seem to have waited. */
interface Stall {
  at: number;
  lateMs: number;
}

const TICK_MS = 5;

export const now = (): number => performance.timeOrigin + performance.now();

if (import.meta.main) await run(process.argv[2] ?? "", Number(process.argv[3]));

async function run(url: string, writesPerSecond: number): Promise<void> {
  const result: WriteLoadResult = { writes: [], stalls: [] };
  let expected = now() + TICK_MS;
  const watching = setInterval(() => {
    const at = now();
    result.stalls.push({ at, lateMs: Math.max(0, at - expected) });
    expected = at + TICK_MS;
  }, TICK_MS);
  const load = await startLoad(connect(url), {
    writesPerSecond,
    onAcknowledged: (id, waitedMs) => result.writes.push({ id, at: now(), waitedMs }),
  });
  console.log("writing");
  await new Response(Bun.stdin.stream()).text();
  await load.stop();
  clearInterval(watching);
  console.log(JSON.stringify(result));
}

/** Starts the load; `stop` waits for what is on its way and tells of all of it. */
export async function startWriteLoad(
  url: string,
  writesPerSecond: number,
): Promise<{ stop(): Promise<WriteLoadResult> }> {
  const child = Bun.spawn([process.execPath, import.meta.path, url, String(writesPerSecond)], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  let output = "";
  const writing = Promise.withResolvers<void>();
  const reading = (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) {
      output += decoder.decode(chunk, { stream: true });
      if (output.includes("\n")) writing.resolve();
    }
    writing.reject(new Error("the load ended before it wrote"));
  })();
  await writing.promise;
  return {
    async stop() {
      await child.stdin.end();
      await reading;
      if ((await child.exited) !== 0) throw new Error("the load failed");
      return JSON.parse(output.slice(output.indexOf("\n")));
    },
  };
}
