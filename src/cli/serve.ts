/**
 * The composition root: opens each resource, in order, onto one stack; the stack releases them in reverse. Read top to
 * bottom it is what the process consists of.
 */
import type { Server } from "bun";
import { createAccounts } from "../accounts/accounts.ts";
import { createDevices } from "../accounts/devices.ts";
import { createLinkCodes } from "../accounts/link-codes.ts";
import { createPasswords } from "../accounts/passwords.ts";
import { loadServerKeys } from "../accounts/secret.ts";
import { createSessions } from "../accounts/sessions.ts";
import { createTokens } from "../accounts/tokens.ts";
import type { Bus, Revocation } from "../bus/bus.ts";
import { openBus } from "../bus/open.ts";
import { loadConfig, type Config } from "../config.ts";
import { CLOSE } from "../errors.ts";
import { createApp } from "../http/app.ts";
import { createClientAddress } from "../http/client-address.ts";
import { createRateLimits } from "../http/rate-limits.ts";
import { bufferedLines, createLogger, type Logger } from "../log.ts";
import { measuredStorage } from "../metrics/measured-storage.ts";
import { openMetrics } from "../metrics/metrics.ts";
import { createOutageLog } from "../outage-log.ts";
import { createProtocolOnDemand } from "../protocol.ts";
import { createFloodGuards } from "../relay/flood.ts";
import { createHub, type Origin, type SocketData } from "../relay/hub.ts";
import { createPresence } from "../relay/presence.ts";
import { createSocketHandler } from "../relay/socket.ts";
import { createSeats } from "../relay/seats.ts";
import { createUpgrade } from "../relay/upgrade.ts";
import { awaitStorage } from "../storage/open.ts";
import { createRetention } from "../sync/retention.ts";
import { createWriter } from "../sync/writer.ts";
import { VERSION } from "../version.ts";
import { DeadlineError, withinDeadline } from "../waiting.ts";
import { UsageError, type Command } from "./command.ts";

const FIRST_SWEEP_MS = 100;

/** The command: runs a server until it is told to stop. */
export const command: Command = {
  summary: "Runs the server (the default).",
  usage:
    "Usage: clipslot-server serve\n\nStops on SIGTERM or SIGINT: finishes what is in flight, says goodbye to sockets, exits 0.",
  async run(args, io) {
    if (args.length > 0) throw new UsageError(`serve takes no words, but got "${args.join(" ")}".`);
    const config = loadConfig(io.env);
    const output = bufferedLines((lines) => process.stdout.write(lines));
    const log = createLogger({
      level: config.logLevel,
      format: process.stdout.isTTY ? "text" : "json",
      write: output.write,
    });
    const stopping = new AbortController();
    const told = new Promise<string>((resolve) => {
      for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => resolve(name));
    });
    void told.then(() => stopping.abort());
    let server: RunningServer;
    try {
      const starting = startServer(config, log, { signal: stopping.signal });
      const toldToStop = told.then(() => withinDeadline(starting, config.stop.releaseMs));
      server = await Promise.race([starting, toldToStop]);
    } catch (error) {
      output.flush();
      if (!stopping.signal.aborted) throw error;
      endSoon(config);
      return 0;
    }
    log.info(`clipslot-server ${VERSION} is ready at ${server.url.origin}`, {
      database: server.database,
      registration: config.registration,
      metrics: server.metricsUrl?.href,
    });
    log.info("stopping", { signal: await told });
    await server.stop();
    log.info("stopped");
    output.flush();
    endSoon(config);
    return 0;
  },
};

/** The process ends by itself when nothing is open; a connection to a database that answers nothing stays open. */
function endSoon(config: Config): void {
  setTimeout(() => process.exit(), config.stop.lingerMs).unref();
}

export interface RunningServer {
  /** Where it listens, such as http://127.0.0.1:3000/ */
  readonly url: URL;
  /** Where its metrics are; undefined when they are off. */
  readonly metricsUrl: URL | undefined;
  readonly database: "sqlite" | "postgres";
  /** Takes nothing new, finishes what is in flight, says goodbye to sockets (1012), and lets go of everything. */
  stop(): Promise<void>;
}

/**
 * Starts a server.
 *
 * @param options `bus` in place of the one that fits the database; `signal` ends the waiting for a database
 * @throws DatabaseInUseError, NewerDatabaseError, ConfigError, or what the operating system says of the port
 */
export async function startServer(
  config: Config,
  log: Logger,
  { bus: otherBus, signal }: { bus?: Bus | undefined; signal?: AbortSignal } = {},
): Promise<RunningServer> {
  await using opening = new AsyncDisposableStack();

  const keys = await loadServerKeys(config, log);
  const metrics = opening.adopt(await openMetrics(config, VERSION), (open) => open.close());
  const database = opening.adopt(await awaitStorage(config, log, signal), (open) => open.close());
  const storage = config.metrics === undefined ? database : measuredStorage(database, metrics);
  const bus = opening.adopt(otherBus ?? (await openBus(config, storage, log)), (open) => open.close());

  const presence = createPresence(storage, config, log);
  opening.defer(() => presence.flush());
  const hub = createHub({ storage, config, bus, presence, log, metrics });
  const writer = createWriter<Origin>({ storage, config, onCommit: hub.onCommit, metrics });
  metrics.observe({ connections: hub.connections, queueLength: () => writer.depth });

  const protocol = createProtocolOnDemand(config);
  const tokens = createTokens(keys.tokens, config);
  const sessions = createSessions({ tokens, storage, config, onRevoked: revoke });
  const passwords = createPasswords(config);
  const accounts = createAccounts({ config, storage, passwords, tokens, sessions });
  const devices = createDevices({ config, storage, tokens, sessions });
  const linkCodes = createLinkCodes({ config, storage, keys });

  const limits = createRateLimits(config);
  const logOutage = createOutageLog(log);
  const clientAddress = createClientAddress(config.trustedProxies, log);
  const seats = createSeats(config);
  const floodGuards = createFloodGuards(config);
  const upgrade = createUpgrade({ sessions, storage, config, seats, floodGuards, clientAddress });
  const app = createApp({
    config,
    log,
    logOutage,
    metrics,
    protocol,
    storage,
    sessions,
    accounts,
    devices,
    linkCodes,
    limits,
    clientAddress,
    floodGuards,
    writer,
    upgrade,
    presence: hub,
    version: VERSION,
  });
  const server: Server<SocketData> = Bun.serve<SocketData>({
    hostname: config.host,
    port: config.port,
    idleTimeout: config.http.idleTimeoutSeconds,
    // The application refuses what is too large with words of its own; this is for what it never sees.
    maxRequestBodySize: config.http.refusableBodyBytes,
    development: false,
    // Outside of development Bun shares a port with whoever asks, and the system deals requests out to both.
    reusePort: false,
    websocket: createSocketHandler({
      config,
      protocol,
      hub,
      seats,
      writer,
      log,
      logOutage,
      metrics,
      epoch: storage.epoch,
    }),
    fetch: (request, listening) => app.fetch(request, { server: listening }),
  });
  opening.defer(() => server.stop(true));
  hub.attach(server);

  await bus.listen(
    (message) => {
      if (message.kind === "changes") return hub.announce(message.userId, message.seq);
      sessions.forget(message.userId);
      hub.closeRevoked(message);
    },
    () => {
      sessions.forgetAll();
      void attempt("look for changes", hub.look);
      void attempt("look for revoked tokens", hub.recheck);
    },
  );
  const ending = new AbortController();
  opening.defer(() => ending.abort());
  const retention = createRetention({ storage, config, log, onCommit: hub.onCommit, signal: ending.signal });
  const timers = [
    setInterval(() => hub.closeExpired(Date.now()), config.relay.sweepIntervalMs),
    setInterval(() => void attempt("look for changes", hub.look), config.relay.pollIntervalMs),
    setInterval(() => void attempt("look for revoked tokens", hub.recheck), config.relay.recheckIntervalMs),
    setInterval(() => void presence.flush(), config.relay.presenceIntervalMs),
    setInterval(() => hub.holdAll(), config.relay.presenceLeaseMs / 2),
    setInterval(() => void retention.sweep(Date.now()), config.sync.retentionIntervalMs),
    // Soon, but after the first answers: it reads every account.
    setTimeout(() => void retention.sweep(Date.now()), FIRST_SWEEP_MS),
  ];
  opening.defer(() => timers.forEach(clearInterval));

  const resources = opening.move();
  return { url: server.url, metricsUrl: metrics.url, database: storage.dialect, stop };

  async function stop(): Promise<void> {
    const { inFlightMs, writesMs, releaseMs } = config.stop;
    const deadline = performance.now() + inFlightMs;
    const stopped = server.stop();
    await inTime("finish all writes", writer.idle(), writesMs);
    hub.closeAll(CLOSE.serviceRestart, "The server restarts; come back in a moment.");
    await Promise.race([stopped, quiet(deadline)]);
    const leftMs = Math.max(0, deadline - performance.now());
    await inTime("finish all writes", writer.idle(), Math.min(writesMs, leftMs));
    await inTime("let go of everything", resources.disposeAsync(), releaseMs);
  }

  /** Whoever told us to stop does not wait for long, and neither do we: for a database that is away, for writes without an end. */
  async function inTime(what: string, work: Promise<void>, milliseconds: number): Promise<void> {
    try {
      await withinDeadline(work, milliseconds);
    } catch (error) {
      if (!(error instanceof DeadlineError)) throw error;
      log.warn(`could not ${what} in time; stopping without it`);
    }
  }

  /** Requests are answered and sockets gone, or it has been long enough. Idle connections alone keep nobody waiting. */
  async function quiet(deadline: number): Promise<void> {
    while (server.pendingRequests + server.pendingWebSockets > 0 && performance.now() < deadline) await Bun.sleep(5);
  }

  function revoke(revocation: Revocation): void {
    hub.closeRevoked(revocation);
    bus.tell({ kind: "revoked", ...revocation });
  }

  async function attempt(what: string, action: () => Promise<void>): Promise<void> {
    await action().catch((error: unknown) => log.warn(`could not ${what}; trying again`, { error }));
  }
}
