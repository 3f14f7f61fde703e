/**
 * What an operator measures. The server tells a `Metrics` what happens, and a scrape asks it what there is; with
 * METRICS_PORT unset nobody listens, nothing is loaded, and telling costs an empty call.
 */
import type { Config } from "../config.ts";
import type { ErrorCode } from "../errors.ts";
import type { Write, WriteOutcome } from "../storage/storage.ts";

/** Which side of the server refused something. */
export type Edge = "http" | "socket";

export interface Metrics {
  /** A request was answered; `route` is its pattern, never its path. */
  answered(method: string, route: string, status: number, milliseconds: number): void;
  /** Somebody was told no. */
  rejected(edge: Edge, reason: ErrorCode): void;
  /** A write was decided. */
  written(kind: Write["kind"], result: WriteOutcome["result"]): void;
  /** A batch was committed. */
  committed(writes: number, milliseconds: number): void;
  /** An operation of the database ended. */
  queried(operation: string, milliseconds: number, succeeded: boolean): void;
  /** A change went out to so many sockets. */
  relayed(receivers: number): void;
  /** A socket that connected has been sent everything it had missed. */
  caughtUp(messages: number): void;
  socketClosed(code: number): void;
}

/** What a scrape asks for. */
export interface Observed {
  connections(): Connections;
  /** Writes that wait for a commit, or are in one. */
  queueLength(): number;
}

/** Who is connected to this instance. */
export interface Connections {
  accounts: number;
  /** By protocol. */
  sockets: Record<1 | 2, number>;
  devices: Record<1 | 2, number>;
}

export interface OpenMetrics extends Metrics {
  /** Where the metrics are; undefined when they are off. */
  readonly url: URL | undefined;
  /** Says what to ask at a scrape. */
  observe(observed: Observed): void;
  close(): Promise<void>;
}

/** The listener could not be opened. */
export class MetricsListenError extends Error {
  override readonly name = "MetricsListenError";

  constructor(host: string, port: number, cause: unknown) {
    super(`The metrics can't be served at ${host}, port ${port}: choose another METRICS_HOST or METRICS_PORT.`, {
      cause,
    });
  }
}

/** Nobody wants to know. */
export const NO_METRICS: OpenMetrics = {
  url: undefined,
  answered() {},
  rejected() {},
  written() {},
  committed() {},
  queried() {},
  relayed() {},
  caughtUp() {},
  socketClosed() {},
  observe() {},
  async close() {},
};

/** Opens the listener that METRICS_PORT names, if it names one. */
export async function openMetrics(config: Config, version: string): Promise<OpenMetrics> {
  if (config.metrics === undefined) return NO_METRICS;
  const { openPrometheus } = await import("./prometheus.ts");
  return openPrometheus(config.metrics, version);
}
