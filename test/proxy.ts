/**
 * A bad network between a client and the server: a TCP proxy that breaks connections off after so many bytes in one
 * direction, swallows everything without a word, or lets nobody through.
 */
import { createConnection, createServer, type AddressInfo, type Socket } from "node:net";

/** Bytes after which a connection breaks off, towards the server and back. */
export interface CutPlan {
  up: number;
  down: number;
}

export const NO_CUT: CutPlan = { up: Number.POSITIVE_INFINITY, down: Number.POSITIVE_INFINITY };

export interface Proxy extends AsyncDisposable {
  readonly url: string;
  /** Nobody gets through, and who is through is cut off. */
  block(): void;
  unblock(): void;
  /** Breaks every connection off now. */
  cut(): void;
  /** Breaks the open connections off after so many bytes more. */
  cutAfter(plan: CutPlan): void;
  /** From now on nothing is cut. */
  calm(): void;
  /** The open connections stay open, and nothing comes through any more. */
  swallow(): void;
  /** As swallow, and also for connections to come; not even a goodbye is answered, as when packets are dropped. */
  blackHole(): void;
}

/**
 * @param port of the server, asked at each connection
 * @param planFor draws a new connection's plan
 */
export async function startProxy(port: () => number, planFor: () => CutPlan = () => NO_CUT): Promise<Proxy> {
  const lines = new Set<Line>();
  let blocked = false;
  let calm = false;
  let hole = false;
  const server = createServer({ allowHalfOpen: true }, (client) => {
    if (blocked) {
      client.destroy();
      return;
    }
    const line = openLine(client, port(), calm ? NO_CUT : planFor(), () => hole);
    if (hole) line.swallow();
    lines.add(line);
    client.on("close", () => lines.delete(line));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cutAll = () => {
    for (const line of lines) line.cut();
  };
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    block() {
      blocked = true;
      cutAll();
    },
    unblock() {
      blocked = false;
    },
    cut: cutAll,
    cutAfter(plan) {
      for (const line of lines) line.cutAfter(plan);
    },
    calm() {
      calm = true;
      blocked = false;
      for (const line of lines) line.cutAfter(NO_CUT);
    },
    swallow() {
      for (const line of lines) line.swallow();
    },
    blackHole() {
      hole = true;
      for (const line of lines) line.swallow();
    },
    async [Symbol.asyncDispose]() {
      cutAll();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

interface Line {
  cut(): void;
  cutAfter(plan: CutPlan): void;
  swallow(): void;
}

function openLine(client: Socket, port: number, plan: CutPlan, answersNoGoodbye: () => boolean): Line {
  const server = createConnection({ host: "127.0.0.1", port, allowHalfOpen: true });
  const left = { ...plan };
  let swallows = false;
  const cut = () => {
    client.destroy();
    server.destroy();
  };
  forward(client, server, "up");
  forward(server, client, "down");
  return {
    cut,
    cutAfter: (next) => Object.assign(left, next),
    swallow() {
      swallows = true;
    },
  };

  function forward(from: Socket, to: Socket, direction: keyof CutPlan): void {
    from.on("data", (chunk: Buffer) => {
      if (swallows) return;
      if (chunk.length <= left[direction]) {
        left[direction] -= chunk.length;
        to.write(chunk);
        return;
      }
      // The last bytes still arrive: a frame may end in its middle.
      to.end(chunk.subarray(0, left[direction]));
      left[direction] = 0;
      from.destroy();
    });
    from.on("error", () => {});
    // What a socket does by itself unless it may be half open.
    from.on("end", () => {
      if (!answersNoGoodbye()) from.end();
    });
    from.on("close", () => to.end());
  }
}
