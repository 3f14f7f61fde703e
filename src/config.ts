/**
 * The configuration: environment → one frozen, typed object. Every default stands here, and every bound that somebody may
 * want to change; those that follow from a form (of a token, of JSON) stand with it. Nothing else reads the environment.
 * README.md's table says what each variable is for.
 */
import { isIP } from "node:net";
import { z } from "zod";

const KIB = 1024;
const MIB = 1024 * KIB;
const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const DAY_MS = 24 * 60 * MINUTE_MS;

/** What stands for a secret where people may look. */
const MASK = "***";

/** Bounds that are not settings: part of the protocol, or of no use to change. */
const FIXED = {
  auth: {
    accountTokenSeconds: 3_600,
    deviceTokenSeconds: 30 * 24 * 3_600,
    emailMaxLength: 254, // RFC 5321 §4.5.3.1.3, less the angle brackets
    passwordMinLength: 6, // shorter ones are guessable at once
    passwordMaxBytes: 1_024,
    deviceNameMaxLength: 128,
    deviceTypeMaxLength: 32,
    /** Live devices an account; the longest unseen makes room. */
    devicesPerAccount: 50,
    /** How long a token's state may be served from memory when no instance says otherwise ([R6]). */
    tokenStateTtlMs: 20 * SECOND_MS,
    tokenStateCacheEntries: 50_000,
    /** Password hashes waiting for their turn; one more is answered `busy`. */
    passwordQueueLength: 64,
    passwordRetryMs: 2 * SECOND_MS,
    linkCodeLifeMs: 5 * MINUTE_MS,
    linkCodeWrongTries: 5,
    inviteLifeMs: 7 * DAY_MS,
  },
  sync: {
    slotCount: 10,
    /** [W3] How far ahead of the server a timestamp may be. */
    clockSkewMs: MINUTE_MS,
    contentHashMaxLength: 128,
    refMaxLength: 64,
    /** [R2] Messages in flight to a client that confirms by pong; the shipped client queues 64 at most. */
    confirmWindow: 32,
    /** How long an unconfirmed delivery waits for company before its ping goes out, at a busy time. */
    confirmDelayMs: 100,
    catchUpPageItems: 256,
    catchUpPageBytes: 1 * MIB,
    historyPageItems: 100,
    historyPageItemsMax: 1_000,
    /** Blobs of a page that are in memory at once; a larger page is written while it is read. So are slots. */
    historyPageBytes: 1 * MIB,
    historyBatchItems: 100,
    changesPageItems: 100,
    changesPageItemsMax: 1_000,
    /** A page is in memory as a whole until its reader has taken it. */
    changesPageBytes: 1 * MIB,
    tombstoneLifeMs: 90 * DAY_MS,
    /** Of more the oldest leave before their time: an account could otherwise fill the disk with deletions. */
    tombstonesPerAccount: 100_000,
    retentionIntervalMs: 60 * MINUTE_MS,
  },
  writer: {
    /** Writes and bytes one commit takes at most. */
    batch: { items: 512, bytes: 8 * MIB },
    /** Writes and bytes that may wait for a commit; one more is answered `busy`. */
    queue: { items: 20_000, bytes: 64 * MIB },
    /** As `queue`, of one account. */
    accountQueue: { items: 2_500, bytes: 16 * MIB },
    busyRetryMs: SECOND_MS,
  },
  relay: {
    idleTimeoutSeconds: 60,
    /** Unanswered writes of one socket at which it is read no further, and at which reading goes on. */
    socketInFlightHigh: 128,
    socketInFlightLow: 32,
    /** How often an instance looks for changes and revocations it was not told of. */
    pollIntervalMs: 3 * SECOND_MS,
    /** [R6] How often tokens of open sockets are asked for, should nobody have told of their end. */
    recheckIntervalMs: 15 * SECOND_MS,
    /** How long a connected device counts as connected for other instances; said again after half of it. */
    presenceLeaseMs: MINUTE_MS,
    presenceIntervalMs: 5 * SECOND_MS,
    /** How long a client may read nothing of what waits for it, or leave a ping without its pong. */
    confirmTimeoutMs: 30 * SECOND_MS,
    /** How often sockets are looked at for an ended token or a silent client. */
    sweepIntervalMs: 500,
    /** Writers of an account that are kept in mind until what they wrote is published, while its channel lags behind. */
    rememberedOrigins: 1_000,
    /** Time a socket that must not go on is given to say goodbye. */
    closeGraceMs: 500,
  },
  database: {
    connectTimeoutSeconds: 5,
    /** How much longer than the server may work on a statement we wait for its answer: past it the connection is dead. */
    answerGraceMs: SECOND_MS,
    /** Pauses between tries to reach a database that is not there yet. */
    retryMinMs: 250,
    retryMaxMs: 2 * SECOND_MS,
  },
  bus: {
    /** How often a server on SQLite looks whether a command changed the database ([R6] allows a second). */
    foreignChangesIntervalMs: 250,
    /** How long messages wait for company. */
    gatherMs: 4,
    /** PostgreSQL refuses a NOTIFY of 8,000 bytes. */
    payloadBytes: 7_900,
    /** Messages that may wait; what is beyond is found by looking. */
    queueMessages: 20_000,
    heartbeatMs: 2 * SECOND_MS,
    heartbeatTimeoutMs: 10 * SECOND_MS,
    /** What takes longer to tell is given up: the others look by themselves. */
    notifyTimeoutMs: 2 * SECOND_MS,
    connectTimeoutSeconds: 5,
  },
  /** What RATE_LIMITS turns on. `burst` at once, then one every `everyMs`; each instance counts for itself. */
  limits: {
    /** Addresses or accounts each limit remembers; of more, the one that was quiet for longest is forgotten. */
    rememberedKeys: 20_000,
    registrationsPerAddress: { burst: 60, everyMs: MINUTE_MS },
    loginsPerAddress: { burst: 120, everyMs: 500 },
    /** The first `free` wrong passwords cost nothing; each one after them doubles the wait. */
    wrongPasswordsPerAccount: {
      free: 5,
      firstWaitMs: SECOND_MS,
      maxWaitMs: 15 * MINUTE_MS,
      forgetAfterMs: 60 * MINUTE_MS,
    },
    wrongPasswordsPerAddress: {
      free: 50,
      firstWaitMs: SECOND_MS,
      maxWaitMs: 15 * MINUTE_MS,
      forgetAfterMs: 60 * MINUTE_MS,
    },
    deviceRegistrationsPerAccount: { burst: 100, everyMs: 30 * SECOND_MS },
    linkCodesPerAccount: { burst: 5, everyMs: 12 * MINUTE_MS },
    exportsPerAccount: { burst: 10, everyMs: 6 * MINUTE_MS },
    /** Answers that are written while they are read, at once: a reader that stalls holds a piece of one in memory. */
    streamsPerAccount: 16,
    streamsRetryMs: SECOND_MS,
    /** A frame counts as one message, and as one more for each `messageBytes` of it. */
    messagesPerDevice: { burst: 2_000, everyMs: 2 },
    messageBytes: 64 * KIB,
    /** Messages that may be refused before the socket is closed. */
    refusedMessagesPerDevice: { burst: 200, everyMs: SECOND_MS },
    /** How long a device that was cut off for it opens no other socket. */
    floodPauseMs: 10 * SECOND_MS,
    /** Of one device the oldest socket makes room: it is most likely half open. */
    socketsPerDevice: 8,
    socketsPerAccount: 200,
    socketsPerAddress: 1_000,
    socketsRetryMs: 10 * SECOND_MS,
  },
  http: {
    /**
     * For a connection between requests, for an answer of which nothing can be sent, and for a body as a whole. The
     * headers of a request have 12 s as a whole: that one is Bun's own.
     */
    idleTimeoutSeconds: 30,
    /** As idleTimeoutSeconds, for an export, which may go over a slow line. */
    exportIdleTimeoutSeconds: 120,
    /** Blobs of an export that are in memory at once. */
    exportPageItems: 100,
    exportPageBytes: 1 * MIB,
    /** Up to here a body that is too large gets an answer in words; beyond it Bun answers 413 by itself. */
    refusableBodyBytes: 64 * MIB,
  },
  /** Docker kills a container 10 s after it was told to stop: all of these come to less. */
  stop: {
    /** What is in flight: writes, then requests and the goodbyes of sockets, then what those wrote. */
    inFlightMs: 6 * SECOND_MS,
    /** Of it, the writes before the goodbyes, and those after. */
    writesMs: 2 * SECOND_MS,
    /** Presence, the bus, the database. */
    releaseMs: 2 * SECOND_MS,
    /** How long the process lives on with connections whose other side does not answer a goodbye. */
    lingerMs: 250,
  },
};

const byteCount = (fallback: number, max: number) => z.coerce.number().int().min(1).max(max).default(fallback);
const list = z
  .string()
  .default("")
  .transform((text) =>
    text
      .split(",")
      .map((part) => part.trim())
      .filter((part) => part !== ""),
  );

const databaseUrl = z.string().refine((url) => /^postgres(ql)?:\/\/./.test(url), {
  error: "must start with postgres:// (leave it out for SQLite in DATA_DIR)",
});

const variables = z.object({
  PORT: z.coerce.number({ error: "must be a port number" }).int().min(0).max(65_535).default(3000),
  HOST: z.string().min(1).default("127.0.0.1"),
  DATA_DIR: z.string().min(1).default("./data"),
  DATABASE_URL: databaseUrl.optional(),
  DATABASE_DIRECT_URL: databaseUrl.optional(),
  DATABASE_POOL_SIZE: z.coerce.number().int().min(1).max(500).default(10),
  DATABASE_TIMEOUT_SECONDS: z.coerce.number().min(0.1).max(300).default(5),
  JWT_SECRET: z
    .string()
    .min(32, "must have at least 32 characters")
    .refine(isStrongSecret, "is too easy to guess")
    .optional(),
  REGISTRATION: z.enum(["open", "closed", "invite"], { error: "must be open, closed or invite" }).default("open"),
  CORS_ORIGINS: list.refine((origins) => origins.every(isOrigin), "must be origins such as https://clips.example.org"),
  TRUSTED_PROXIES: list.refine(
    (blocks) => blocks.every(isAddressBlock),
    "must be addresses or CIDR blocks such as 10.0.0.0/8",
  ),
  RATE_LIMITS: z.enum(["on", "off"], { error: "must be on or off" }).default("on"),
  MAX_BLOB_BYTES: byteCount(1 * MIB, 16 * MIB),
  HISTORY_LIMIT: z.coerce.number().int().min(1).max(1_000_000).default(1000),
  ACCOUNT_STORAGE_BYTES: byteCount(256 * MIB, Number.MAX_SAFE_INTEGER),
  METRICS_PORT: z.coerce.number({ error: "must be a port number" }).int().min(0).max(65_535).optional(),
  METRICS_HOST: z.string().min(1).default("127.0.0.1"),
  LOG_LEVEL: z
    .enum(["debug", "info", "warn", "error"], { error: "must be debug, info, warn or error" })
    .default("info"),
});

const environment = variables.refine(
  ({ DATABASE_URL, DATABASE_DIRECT_URL }) => DATABASE_DIRECT_URL === undefined || DATABASE_URL !== undefined,
  { path: ["DATABASE_DIRECT_URL"], message: "is of no use without DATABASE_URL", when: () => true },
);

export type Config = Readonly<ReturnType<typeof build>>;
export type LogLevel = Config["logLevel"];

/** A fault in the environment: one line a variable, in plain words. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

/**
 * Reads the configuration.
 *
 * @param env usually `process.env`; an empty value counts as not set
 * @throws ConfigError naming every fault at once
 */
export function loadConfig(env: Record<string, string | undefined>): Config {
  return Object.freeze(build(parseEnvironment(env)));
}

/**
 * The variables as the server reads them, one by one; secrets masked.
 *
 * @throws ConfigError
 */
export function describeSettings(env: Record<string, string | undefined>) {
  const settings = parseEnvironment(env);
  return Object.entries(variables.shape).map(([name]) => {
    const value = settings[name as keyof typeof settings];
    const text = value === undefined ? "" : Array.isArray(value) ? value.join(",") : String(value);
    return { name, value: maskSecrets(name, text), isSet: (env[name] ?? "") !== "" };
  });
}

function parseEnvironment(env: Record<string, string | undefined>): z.infer<typeof environment> {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ""));
  const parsed = environment.safeParse(given);
  if (parsed.success) return parsed.data;
  const faults = parsed.error.issues.map((issue) => `  ${issue.path.join(".")} ${issue.message}`);
  throw new ConfigError(`The configuration has faults:\n${faults.join("\n")}`);
}

/** A database's address without its password, wherever it stands in it; of one that can't be read, nothing. */
function maskSecrets(name: string, text: string): string {
  if (text === "" || !/SECRET|PASSWORD|TOKEN|URL/.test(name)) return text;
  const url = name.includes("URL") ? URL.parse(text) : null;
  if (url === null) return MASK;
  if (url.password !== "") url.password = MASK;
  for (const parameter of url.searchParams.keys()) {
    if (/pass|secret|key/i.test(parameter)) url.searchParams.set(parameter, MASK);
  }
  return url.href;
}

function build(env: z.infer<typeof environment>) {
  const maxFrameBytes = Math.ceil(env.MAX_BLOB_BYTES / 3) * 4 + 4 * KIB;
  return {
    port: env.PORT,
    host: env.HOST,
    dataDir: env.DATA_DIR,
    databaseUrl: env.DATABASE_URL,
    /** Past a pooler: for LISTEN and migrations. */
    databaseDirectUrl: env.DATABASE_DIRECT_URL ?? env.DATABASE_URL,
    /** DATABASE_URL points at a transaction pooler, which knows no named prepared statements. */
    databasePooled: env.DATABASE_DIRECT_URL !== undefined,
    databasePoolSize: env.DATABASE_POOL_SIZE,
    databaseTimeoutMs: env.DATABASE_TIMEOUT_SECONDS * SECOND_MS,
    jwtSecret: env.JWT_SECRET,
    registration: env.REGISTRATION,
    corsOrigins: env.CORS_ORIGINS,
    trustedProxies: env.TRUSTED_PROXIES,
    rateLimits: env.RATE_LIMITS === "on",
    logLevel: env.LOG_LEVEL,
    /** Where Prometheus may ask; undefined: nowhere. */
    metrics: env.METRICS_PORT === undefined ? undefined : { host: env.METRICS_HOST, port: env.METRICS_PORT },
    maxBlobBytes: env.MAX_BLOB_BYTES,
    /** A frame that holds the largest blob and its fields. */
    maxFrameBytes,
    /** A body that holds the largest blob and its fields; a batch of history shares it. */
    maxBodyBytes: Math.max(maxFrameBytes, 2 * MIB),
    /**
     * Bytes a socket may leave unread before it is cut ([R5]): room for a few of the largest frames, and for a page of a
     * catch-up in base64 upon as much that still waits.
     */
    socketBufferBytes: Math.max(4 * FIXED.sync.catchUpPageBytes, 4 * maxFrameBytes),
    historyLimit: env.HISTORY_LIMIT,
    accountStorageBytes: env.ACCOUNT_STORAGE_BYTES,
    ...FIXED,
  };
}

/** Refuses secrets that are long but say little: repeated characters, the placeholders of examples. */
function isStrongSecret(secret: string): boolean {
  return new Set(secret).size >= 10 && !/change[-_ ]?me|secret.*secret|password|example/i.test(secret);
}

function isOrigin(text: string): boolean {
  const url = URL.parse(text);
  return url !== null && url.origin === text;
}

function isAddressBlock(text: string): boolean {
  const [address, prefix, ...rest] = text.split("/");
  const version = isIP(address ?? "");
  if (version === 0 || rest.length > 0) return false;
  return prefix === undefined || (/^\d{1,3}$/.test(prefix) && Number(prefix) <= (version === 4 ? 32 : 128));
}
