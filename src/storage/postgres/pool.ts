/**
 * Connections to PostgreSQL, and what postgres.js leaves to its user: a deadline on every query, a fresh set of
 * connections when one has gone silent, retries of what lost a race, errors in the words of the port.
 *
 * Nothing here opens a transaction over several round trips: a connection that ends inside `sql.begin` ends the process
 * (postgres.js issues 1066, 1154, 1208). Every operation of the adapter is one statement.
 */
import { drizzle, type PostgresJsDatabase } from "drizzle-orm/postgres-js";
import postgres from "postgres";
import type { Logger } from "../../log.ts";
import { isConflict, isLostConnection, translate, unavailable } from "./faults.ts";

/** Tries of a statement that PostgreSQL rolled back for the sake of others. */
const CONFLICT_TRIES = 5;
const CONFLICT_PAUSE_MS = 10;
/** A server that is back is found again within this time. */
const RECONNECT_PAUSE_SECONDS = 0.25;
const KEEP_ALIVE_SECONDS = 15;
/** How often connections are replaced at most, while they are lost as soon as they are made. */
const REPLACE_PAUSE_MS = 250;
/** How long statements on the other connections may go on when one was lost. */
const LOST_GRACE_MS = 1_000;

/**
 * Every query of ours has its index. A prepared plan from when the tables were small must not scan them when they have
 * grown, and compiling what takes a millisecond is not worth it.
 */
const PLANNING = { enable_seqscan: "off", jit: "off" };

export interface PoolOptions {
  url: string;
  /** The url is that of a transaction pooler (PgBouncer): no named prepared statements, no settings of a session. */
  pooled: boolean;
  poolSize: number;
  connectTimeoutSeconds: number;
  /** After this the server ends a statement. Through a pooler, set it on the role or the database instead. */
  statementTimeoutMs: number;
  /** After this we give up on an answer. Longer than the former, so that only a dead connection comes to it. */
  queryTimeoutMs: number;
}

/** bigint arrives as a number: ours are counts and times, far below 2^53. */
export type Sql = postgres.Sql<{ bigint: number }>;

export interface Client {
  sql: Sql;
  db: PostgresJsDatabase;
}

interface Session<Queries> {
  client: Client;
  queries: Queries;
  /** By performance.now(). */
  since: number;
}

export class Pool<Queries> {
  readonly #options: PoolOptions;
  readonly #prepare: (client: Client) => Queries;
  readonly #log: Logger | undefined;
  #current: Session<Queries>;
  readonly #leaving = new Set<Promise<void>>();

  /** @param prepare makes the queries of a client; called again when the connections are replaced */
  constructor(options: PoolOptions, prepare: (client: Client) => Queries, log?: Logger) {
    this.#options = options;
    this.#prepare = prepare;
    this.#log = log;
    this.#current = this.#connect();
  }

  /**
   * Runs one statement.
   *
   * A statement that may have been carried out is never repeated here: when its connection ends, nobody knows, and the
   * caller hears `unavailable`.
   */
  async run<T>(query: (queries: Queries) => PromiseLike<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      const { client, queries } = this.#current;
      try {
        return await this.#withDeadline(query(queries), client);
      } catch (error) {
        if (isConflict(error) && tries < CONFLICT_TRIES) {
          this.#log?.debug("a statement lost a race and is tried again", { tries, error: translate(error) });
          await Bun.sleep(Math.random() * CONFLICT_PAUSE_MS * tries);
          continue;
        }
        if (isLostConnection(error)) this.#replace(client, "a connection was lost", LOST_GRACE_MS);
        throw translate(error);
      }
    }
  }

  /** Lets running statements end, for at most the time that any may take. */
  async close(): Promise<void> {
    this.#leave(this.#current.client, this.#options.queryTimeoutMs);
    await Promise.all(this.#leaving);
  }

  async #withDeadline<T>(answer: PromiseLike<T>, client: Client): Promise<T> {
    const deadline = Promise.withResolvers<never>();
    const timer = setTimeout(() => {
      this.#replace(client, "a connection went silent", this.#options.queryTimeoutMs);
      deadline.reject(unavailable(new Error("no answer within the deadline")));
    }, this.#options.queryTimeoutMs);
    try {
      return await Promise.race([answer, deadline.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Fresh connections take over; what still runs on the old ones may end within `graceMs`.
   *
   * postgres.js would put more queries on a dead connection, and can't close a single one. And a connection of its own
   * that ended while a message waited to be sent never opens again: queries wait on it until the connect timeout.
   */
  #replace(broken: Client, reason: string, graceMs: number): void {
    const { client, since } = this.#current;
    if (client !== broken || performance.now() - since < REPLACE_PAUSE_MS) return;
    this.#log?.warn("connecting to the database again", { reason });
    this.#current = this.#connect();
    this.#leave(broken, graceMs);
  }

  #leave(client: Client, graceMs: number): void {
    const left = client.sql
      .end({ timeout: graceMs / 1_000 })
      .catch((error: unknown) => this.#log?.debug("connections did not close", { error }))
      .finally(() => this.#leaving.delete(left));
    this.#leaving.add(left);
  }

  #connect(): Session<Queries> {
    const { url, pooled, poolSize, connectTimeoutSeconds, statementTimeoutMs } = this.#options;
    const sql = postgres(url, {
      max: poolSize,
      prepare: !pooled,
      connect_timeout: connectTimeoutSeconds,
      backoff: () => RECONNECT_PAUSE_SECONDS,
      keep_alive: KEEP_ALIVE_SECONDS,
      fetch_types: false,
      onnotice: () => {},
      types: { bigint: { to: 20, from: [20], parse: Number, serialize: String } },
      connection: {
        // A pooler keeps connections with their name when their servers have stopped: there the bus's tells of one.
        application_name: pooled ? "clipslot-server pooled" : "clipslot-server",
        // schema.ts reads times in this form.
        TimeZone: "UTC",
        DateStyle: "ISO",
        ...(pooled ? {} : { statement_timeout: statementTimeoutMs, ...PLANNING }),
      },
    });
    const client = { sql, db: drizzle({ client: sql }) };
    return { client, queries: this.#prepare(client), since: performance.now() };
  }
}
