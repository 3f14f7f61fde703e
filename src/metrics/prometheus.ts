/**
 * Metrics for Prometheus, on a listener of their own: what they say is for the operator alone. What happens thousands
 * of times a second is counted in plain numbers and handed to the library when a scrape comes.
 */
import { monitorEventLoopDelay } from "node:perf_hooks";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Write, WriteOutcome } from "../storage/storage.ts";
import { MetricsListenError, type Observed, type OpenMetrics } from "./metrics.ts";

type Kind = Write["kind"];
type Result = WriteOutcome["result"];

const PROTOCOLS = [1, 2] as const;
/** Seconds: from a statement on a fast disk to one that somebody waits for. */
const QUERY_BUCKETS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5];
const REQUEST_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10];
const COUNT_BUCKETS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
const CATCH_UP_BUCKETS = [0, 1, 10, 32, 100, 320, 1_000, 10_000];
/** Methods are the client's words: those we do not know share one name, so that nobody can invent series. */
const METHODS: ReadonlySet<string> = new Set(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]);

export function openPrometheus({ host, port }: { host: string; port: number }, version: string): OpenMetrics {
  const registry = new Registry();
  const register = { registers: [registry] };
  let observed: Observed | undefined;

  // Counted by hand

  const writes = new Map<Kind, Map<Result, number>>();
  let relayedChanges = 0;
  let relayedMessages = 0;

  counter("clipslot_writes_total", "Writes, by kind and by what became of them.", ["kind", "result"], (set) => {
    for (const [kind, results] of writes) {
      for (const [result, count] of results) set({ kind, result }, count);
    }
  });
  counter("clipslot_relayed_changes_total", "Changes that had somebody to go to.", [], (set) =>
    set({}, relayedChanges),
  );
  counter("clipslot_relayed_messages_total", "Messages that carried them, one a receiving socket.", [], (set) =>
    set({}, relayedMessages),
  );

  // Counted by the library

  const requests = new Histogram({
    ...register,
    name: "clipslot_http_request_duration_seconds",
    help: "Time to answer a request, by route pattern.",
    labelNames: ["method", "route", "status"],
    buckets: REQUEST_BUCKETS,
  });
  const rejections = new Counter({
    ...register,
    name: "clipslot_rejections_total",
    help: "Requests and messages refused, by the code of the error.",
    labelNames: ["edge", "reason"],
  });
  // From the first moment on, or the first fault would be no increase.
  for (const edge of ["http", "socket"]) rejections.inc({ edge, reason: "internal" }, 0);
  const commitSizes = new Histogram({
    ...register,
    name: "clipslot_commit_writes",
    help: "Writes that shared a commit.",
    buckets: COUNT_BUCKETS,
  });
  const commits = new Histogram({
    ...register,
    name: "clipslot_commit_duration_seconds",
    help: "Time that a commit took.",
    buckets: QUERY_BUCKETS,
  });
  const queries = new Histogram({
    ...register,
    name: "clipslot_database_duration_seconds",
    help: "Time of the database's operations.",
    labelNames: ["operation"],
    buckets: QUERY_BUCKETS,
  });
  const queryFailures = new Counter({
    ...register,
    name: "clipslot_database_failures_total",
    help: "Operations that the database did not do.",
    labelNames: ["operation"],
  });
  const catchUps = new Histogram({
    ...register,
    name: "clipslot_catch_up_messages",
    help: "Messages that a device had missed when it connected.",
    buckets: CATCH_UP_BUCKETS,
  });
  const closes = new Counter({
    ...register,
    name: "clipslot_socket_closes_total",
    help: "Sockets closed, by WebSocket close code.",
    labelNames: ["code"],
  });

  // Asked for at a scrape

  gauge("clipslot_connected_accounts", "Accounts with a socket on this instance.", [], (set) => {
    if (observed !== undefined) set({}, observed.connections().accounts);
  });
  gauge("clipslot_connected_sockets", "Open sockets, by protocol.", ["protocol"], (set) => {
    const sockets = observed?.connections().sockets;
    for (const protocol of PROTOCOLS) set({ protocol }, sockets?.[protocol] ?? 0);
  });
  gauge("clipslot_connected_devices", "Devices with an open socket, by protocol.", ["protocol"], (set) => {
    const devices = observed?.connections().devices;
    for (const protocol of PROTOCOLS) set({ protocol }, devices?.[protocol] ?? 0);
  });
  gauge("clipslot_write_queue_length", "Writes that wait for a commit, or are in one.", [], (set) =>
    set({}, observed?.queueLength() ?? 0),
  );

  const delay = monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  gauge("clipslot_event_loop_delay_seconds", "How late timers ran since the last scrape.", ["percentile"], (set) => {
    set({ percentile: "50" }, delay.percentile(50) / 1e9);
    set({ percentile: "99" }, delay.percentile(99) / 1e9);
    set({ percentile: "100" }, delay.max / 1e9);
    delay.reset();
  });
  gauge("clipslot_process_resident_memory_bytes", "Memory that the process holds.", [], (set) =>
    set({}, process.memoryUsage.rss()),
  );
  counter("clipslot_process_cpu_seconds_total", "Processor time that the process used.", [], (set) => {
    const { user, system } = process.cpuUsage();
    set({}, (user + system) / 1e6);
  });
  gauge("clipslot_process_start_time_seconds", "When the process started, in seconds since 1970.", [], (set) =>
    set({}, performance.timeOrigin / 1e3),
  );
  gauge("clipslot_build_info", "Always 1; the label names the version.", ["version"], (set) => set({ version }, 1));

  const server = listen(registry, host, port);

  return {
    url: new URL("/metrics", server.url),
    answered(method, route, status, milliseconds) {
      const known = METHODS.has(method) ? method : "other";
      requests.observe({ method: known, route, status }, milliseconds / 1e3);
    },
    rejected: (edge, reason) => rejections.inc({ edge, reason }),
    written(kind, result) {
      const results = writes.get(kind) ?? new Map<Result, number>();
      if (results.size === 0) writes.set(kind, results);
      results.set(result, (results.get(result) ?? 0) + 1);
    },
    committed(count, milliseconds) {
      commitSizes.observe(count);
      commits.observe(milliseconds / 1e3);
    },
    queried(operation, milliseconds, succeeded) {
      queries.observe({ operation }, milliseconds / 1e3);
      if (!succeeded) queryFailures.inc({ operation });
    },
    relayed(receivers) {
      relayedChanges += 1;
      relayedMessages += receivers;
    },
    caughtUp: (messages) => catchUps.observe(messages),
    socketClosed: (code) => closes.inc({ code }),
    observe(told) {
      observed = told;
    },
    async close() {
      delay.disable();
      await server.stop(true);
    },
  };

  type Labels = Record<string, string | number>;
  type Collect = (set: (labels: Labels, value: number) => void) => void;

  function counter(name: string, help: string, labelNames: string[], collect: Collect): void {
    const made: Counter = new Counter({
      ...register,
      name,
      help,
      labelNames,
      collect() {
        made.reset();
        collect((labels, value) => made.inc(labels, value));
      },
    });
  }

  function gauge(name: string, help: string, labelNames: string[], collect: Collect): void {
    const made: Gauge = new Gauge({
      ...register,
      name,
      help,
      labelNames,
      collect: () => collect((labels, value) => made.set(labels, value)),
    });
  }
}

function listen(registry: Registry, hostname: string, port: number) {
  try {
    return Bun.serve({
      hostname,
      port,
      development: false,
      reusePort: false,
      routes: {
        "/metrics": {
          GET: async () =>
            new Response(await registry.metrics(), { headers: { "Content-Type": registry.contentType } }),
        },
      },
      fetch: () => new Response("The metrics are at /metrics.\n", { status: 404 }),
    });
  } catch (error) {
    throw new MetricsListenError(hostname, port, error);
  }
}
