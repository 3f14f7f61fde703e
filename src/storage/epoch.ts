/**
 * A name for a database as clients know it, part of every cursor: drawn when the database is created and when a backup
 * is restored. 16 lower-case hex characters.
 */
export function newEpoch(): string {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(8))).toString("hex");
}
