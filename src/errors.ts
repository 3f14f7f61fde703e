/**
 * The one error the server raises on purpose. Its code decides the HTTP status, the `error` message on a socket,
 * and nothing else: a fault that is not an AppError is ours, is logged once, and reaches a client as `internal`.
 *
 * The shipped client logs its user out when an error's text contains "401", "Unauthorized" or "expired"
 * (PROTOCOL.md, [E1]), so only `token_missing` and `token_invalid` may say so.
 */

export const HTTP_STATUS = {
  bad_request: 400,
  invalid_json: 400,
  login_failed: 401,
  token_missing: 401,
  token_invalid: 401,
  device_required: 401,
  wrong_password: 403,
  registration_closed: 403,
  invite_invalid: 403,
  origin_forbidden: 403,
  not_found: 404,
  method_not_allowed: 405,
  email_taken: 409,
  resync_required: 410,
  payload_too_large: 413,
  quota_exceeded: 413,
  upgrade_required: 426,
  rate_limited: 429,
  internal: 500,
  unavailable: 503,
  busy: 503,
  disk_full: 507,
} as const;

export type ErrorCode = keyof typeof HTTP_STATUS;

/** Close codes of our own, in the range RFC 6455 §7.4.2 leaves to applications. */
export const CLOSE = {
  /** RFC 6455 §7.4.1: the endpoint broke a policy: it flooded, or it did not read. */
  policyViolation: 1008,
  /** RFC 6455 §7.4.1: a fault of ours. */
  internalError: 1011,
  /** IANA registry: the server restarts; the client may come back. */
  serviceRestart: 1012,
  /** [R6]: the token of this socket no longer counts. */
  unauthorized: 4401,
  /** The cursor can't be served; come back without one. */
  resyncRequired: 4410,
} as const;

/** Words that make the shipped client log its user out when they stand in an error's text ([E1]). */
const LOGS_OUT = /401|unauthorized|expired/i;
const MAY_LOG_OUT: ReadonlySet<ErrorCode> = new Set(["token_missing", "token_invalid"]);

export class AppError extends Error {
  override readonly name = "AppError";
  readonly code: ErrorCode;
  /** Milliseconds after which a retry makes sense; becomes `Retry-After` or `retry_after_ms`. */
  readonly retryAfterMs: number | undefined;

  /**
   * @param code what a program reads
   * @param message what a person reads; never holds a secret, SQL, or a stack
   */
  constructor(code: ErrorCode, message: string, options: { retryAfterMs?: number; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.code = code;
    this.retryAfterMs = options.retryAfterMs;
  }

  get status(): (typeof HTTP_STATUS)[ErrorCode] {
    return HTTP_STATUS[this.code];
  }

  /** What a client is told. A number in a text can hold "401" by chance, a limit of 1,401,856 bytes for one. */
  get text(): string {
    return LOGS_OUT.test(this.message) && !MAY_LOG_OUT.has(this.code)
      ? "The server refused this request."
      : this.message;
  }
}
