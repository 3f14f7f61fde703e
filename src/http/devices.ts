/** The devices of the signed-in account. */
import type { Devices } from "../accounts/devices.ts";
import type { Device } from "../storage/storage.ts";
import { formatTime, uuid, type Protocol } from "../protocol.ts";
import { validate } from "../validate.ts";
import { ACCOUNT_BODY_BYTES } from "./auth.ts";
import type { AppContext } from "./context.ts";
import type { RateLimits } from "./rate-limits.ts";
import { readBody } from "./read-body.ts";

/** Who holds a socket. */
export interface ConnectedDevices {
  isConnected(userId: string, device: Device): boolean;
}

export interface DeviceDependencies {
  protocol: Protocol;
  devices: Devices;
  presence: ConnectedDevices;
  limits: RateLimits;
}

/** Handlers of devices, one a route of app.ts. */
export function deviceHandlers({ protocol, devices, presence, limits }: DeviceDependencies) {
  return {
    register: async (c: AppContext) => {
      const body = await readBody(c.req.raw, protocol.device, ACCOUNT_BODY_BYTES);
      limits.deviceRegistration(c.var.identity.userId);
      const { deviceId, token } = await devices.register(c.var.identity, body.name, body.device_type);
      return c.json({ device_id: deviceId, token }, 201);
    },

    list: async (c: AppContext) => {
      const { userId } = c.var.identity;
      const list = await devices.list(userId);
      return c.json(
        list.map((device) => ({
          ...deviceToWire(device),
          connected: presence.isConnected(userId, device),
          behind: device.behind,
        })),
      );
    },

    revoke: async (c: AppContext) => {
      await devices.revoke(c.var.identity.userId, validate(uuid, c.req.param("id"), "The device's id"));
      return c.body(null, 204);
    },
  };
}

/** As it stands in GET /api/auth/devices, but for `connected` and `behind`. */
export function deviceToWire(device: Device) {
  return {
    id: device.id,
    name: device.name,
    device_type: device.deviceType,
    last_seen: formatTime(device.lastSeen),
    created_at: formatTime(device.createdAt),
  };
}
