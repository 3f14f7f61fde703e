/** The devices of an account: each has its own token, and can be cut off alone. */
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import type { Device, Storage } from "../storage/storage.ts";
import type { Sessions } from "./sessions.ts";
import { deadToken, type Identity, type Tokens } from "./tokens.ts";

export interface Devices {
  /** Makes room at the limit: the device that was longest unseen is cut off. */
  register(identity: Identity, name: string, deviceType: string): Promise<{ deviceId: string; token: string }>;
  /** Oldest first; `behind` is how many of the account's changes the device has not confirmed yet, at most. */
  list(userId: string): Promise<(Device & { behind: number })[]>;
  /**
   * Cuts a device off: its token counts no more, its sockets close ([R6]).
   *
   * @throws AppError `not_found`
   */
  revoke(userId: string, deviceId: string): Promise<void>;
  /**
   * A fresh token for the same device; the old one counts until its own end.
   *
   * @throws AppError `device_required` for an account token
   */
  refresh(identity: Identity): Promise<string>;
}

export interface DevicesOptions {
  config: Config;
  storage: Storage;
  tokens: Tokens;
  sessions: Sessions;
}

/** Devices over one database; what each call does and throws stands at Devices. */
export function createDevices({ config, storage, tokens, sessions }: DevicesOptions): Devices {
  return {
    async register(identity, name, deviceType) {
      const { userId, tokenGeneration } = await sessions.confirm(identity);
      const now = Date.now();
      const id = crypto.randomUUID();
      const device = { userId, id, name, deviceType, createdAt: now, tokenExpiresAt: tokens.deviceTokenEnd(now) };
      const registered = await storage.registerDevice(device, config.auth.devicesPerAccount);
      if (registered === null) throw deadToken();
      for (const deviceId of registered.revoked) sessions.end({ userId, deviceId, tokenGeneration: null });
      return { deviceId: id, token: await tokens.issue({ userId, deviceId: id, tokenGeneration }) };
    },

    async list(userId) {
      const [devices, seqs] = await Promise.all([storage.devices(userId, Date.now()), storage.accountSeqs([userId])]);
      const seq = seqs.get(userId) ?? 0;
      return devices.map((device) => ({ ...device, behind: Math.max(0, seq - device.confirmedSeq) }));
    },

    async revoke(userId, deviceId) {
      const revoked = await storage.revokeDevice(userId, deviceId, Date.now());
      if (!revoked) throw new AppError("not_found", "There is no such device.");
      sessions.end({ userId, deviceId, tokenGeneration: null });
    },

    async refresh(identity) {
      const { userId, deviceId } = identity;
      if (deviceId === null) throw new AppError("device_required", "This needs the token of a device.");
      const extended = await storage.extendDevice(userId, deviceId, tokens.deviceTokenEnd(Date.now()));
      if (!extended) throw deadToken();
      return tokens.issue(identity);
    },
  };
}
