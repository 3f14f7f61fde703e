/** How many sockets a device, an account and an address may hold: what is refused is refused before the upgrade. */
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import type { Socket, SocketData } from "./hub.ts";

export interface Seats {
  /** @throws AppError `rate_limited` when the account or the address holds as many as it may */
  admit(newcomer: Pick<SocketData, "userId" | "address">): void;
  /**
   * A socket opened.
   *
   * @returns when its device now holds too many, the oldest of them, to be closed
   */
  take(socket: Socket): Socket | undefined;
  /** A socket closed. */
  leave(socket: Socket): void;
}

/** One for the whole process; with RATE_LIMITS=off everybody finds a seat. */
export function createSeats({ rateLimits, limits }: Config): Seats {
  const accounts = new Map<string, Set<Socket>>();
  const addresses = new Map<string, number>();

  return {
    admit({ userId, address }) {
      if (!rateLimits) return;
      const isFull =
        (accounts.get(userId)?.size ?? 0) >= limits.socketsPerAccount ||
        (addresses.get(address) ?? 0) >= limits.socketsPerAddress;
      if (isFull) {
        throw new AppError("rate_limited", "Too many sockets are open.", { retryAfterMs: limits.socketsRetryMs });
      }
    },

    take(socket) {
      const { userId, deviceId, address } = socket.data;
      const sockets = accounts.get(userId) ?? new Set();
      accounts.set(userId, sockets.add(socket));
      addresses.set(address, (addresses.get(address) ?? 0) + 1);
      const ofDevice = [...sockets].filter(({ data }) => data.deviceId === deviceId);
      return rateLimits && ofDevice.length > limits.socketsPerDevice ? ofDevice[0] : undefined;
    },

    leave(socket) {
      const { userId, address } = socket.data;
      const sockets = accounts.get(userId);
      if (sockets === undefined || !sockets.delete(socket)) return;
      if (sockets.size === 0) accounts.delete(userId);
      const left = (addresses.get(address) ?? 0) - 1;
      if (left > 0) addresses.set(address, left);
      else addresses.delete(address);
    },
  };
}
