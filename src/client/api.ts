/** The REST calls a sync client needs: accounts and devices. What travels on the socket is not repeated here. */

export interface SignedIn {
  /** Names the account: good for an hour, to register a device with. */
  token: string;
  user_id: string;
}

export interface DeviceInfo {
  id: string;
  name: string;
  device_type: string;
  last_seen: string;
  created_at: string;
  connected: boolean;
  /** Changes that it has not confirmed, at most. */
  behind: number;
}

export interface SlotRow {
  slot_number: number;
  encrypted_blob: string;
  updated_at: string;
  updated_by: string | null;
  seq: number;
}

/** The server answered, and not with what was asked for. A request that got no answer rejects as fetch does. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  readonly status: number;
  /** For programs, such as `email_taken`; empty when the answer did not come from the server itself. */
  readonly code: string;
  /** How long to wait before another try; undefined when the answer did not say. */
  readonly retryAfterMs: number | undefined;

  constructor(status: number, code: string, message: string, retryAfterMs?: number) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

export type Api = ReturnType<typeof createApi>;

/**
 * @param url of the server, such as https://clips.example.org
 * @param request replaces fetch
 */
export function createApi(url: string, request: (url: string, init: RequestInit) => Promise<Response> = fetch) {
  return {
    /**
     * @param invite where registration is by invitation
     * @throws ApiError `email_taken`, `registration_closed`, `invite_invalid`, `bad_request`
     */
    register: (email: string, password: string, invite?: string): Promise<SignedIn> =>
      call("POST", "/api/auth/register", { body: { email, password, invite } }),

    /** @throws ApiError `login_failed`, `rate_limited` */
    login: (email: string, password: string): Promise<SignedIn> =>
      call("POST", "/api/auth/login", { body: { email, password } }),

    /** Once for each installation: keep the token, it is what a sync client needs. */
    createDevice: (token: string, name: string, deviceType: string): Promise<{ device_id: string; token: string }> =>
      call("POST", "/api/auth/device", { token, body: { name, device_type: deviceType } }),

    devices: (token: string): Promise<DeviceInfo[]> => call("GET", "/api/auth/devices", { token }),

    /** Cuts a device off: its token no longer counts, its sockets close. */
    removeDevice: (token: string, id: string): Promise<undefined> =>
      call("DELETE", `/api/auth/device/${id}`, { token }),

    /** A device token for a fresh one of the same device, before it ends. */
    refresh: (token: string): Promise<{ token: string }> => call("POST", "/api/auth/refresh", { token }),

    /** Whether the token still counts: a browser does not say why a socket did not open. */
    async isSignedIn(token: string): Promise<boolean> {
      try {
        await call("GET", "/api/auth/account", { token });
        return true;
      } catch (error) {
        if (error instanceof ApiError && error.status === 401) return false;
        throw error;
      }
    },

    slots: (token: string): Promise<SlotRow[]> => call("GET", "/api/sync/slots", { token }),
    call,
  };

  /** Any call of the server. */
  async function call<Answer>(
    method: string,
    path: string,
    { token, body }: { token?: string; body?: unknown } = {},
  ): Promise<Answer> {
    const response = await request(new URL(path, url).href, {
      method,
      headers: {
        ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw toError(response, text);
    return (text === "" ? undefined : JSON.parse(text)) as Answer;
  }
}

function toError(response: Response, text: string): ApiError {
  const seconds = Number(response.headers.get("Retry-After") ?? Number.NaN);
  const retryAfterMs = Number.isFinite(seconds) ? seconds * 1000 : undefined;
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    // A proxy's page, perhaps.
  }
  const { error, code } =
    typeof body === "object" && body !== null ? (body as { error?: unknown; code?: unknown }) : {};
  const message = typeof error === "string" ? error : `The server answered ${response.status}.`;
  return new ApiError(response.status, typeof code === "string" ? code : "", message, retryAfterMs);
}
