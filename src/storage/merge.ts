/**
 * Who wins. Pure: it knows no database, no clock and no socket.
 *
 * [W2] Of two contents of a slot the greater (timestamp, device id, SHA-256 of the blob) stands. Every device that
 * compares so ends with the same content, whatever the order, the grouping and the repetition of what it hears.
 */

const NIL_UUID = "00000000-0000-0000-0000-000000000000";

/** One content of a slot, as far as the comparison needs it. */
export interface SlotVersion {
  timestamp: number;
  deviceId: string | null;
  /** By hashContent; asked for only where timestamp and device leave it open. A cleared slot has no content. */
  contentHash: () => Uint8Array;
}

/**
 * @returns above 0 when `left` stands, below 0 when `right` does, 0 when they are one and the same write
 */
export function compareSlotVersions(left: SlotVersion, right: SlotVersion): number {
  if (left.timestamp !== right.timestamp) return left.timestamp - right.timestamp;
  const leftDevice = left.deviceId ?? NIL_UUID;
  const rightDevice = right.deviceId ?? NIL_UUID;
  if (leftDevice !== rightDevice) return leftDevice > rightDevice ? 1 : -1;
  return Buffer.compare(left.contentHash(), right.contentHash());
}

/** SHA-256 of a blob, 32 bytes: what [W2] compares last. */
export function hashContent(content: Uint8Array): Uint8Array {
  return new Bun.CryptoHasher("sha256").update(content).digest();
}
