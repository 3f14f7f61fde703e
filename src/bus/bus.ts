/**
 * The bus port: how instances tell each other that something happened. A message is a nudge without content; what it
 * is about is read from the database. A lost message costs latency, never a change.
 */

/** Tokens that no longer count: a device's, or (deviceId null) the account's below a generation (null: all of them). */
export interface Revocation {
  userId: string;
  deviceId: string | null;
  tokenGeneration: number | null;
}

export type BusMessage =
  /** The account's counter reached `seq`. */
  | { kind: "changes"; userId: string; seq: number }
  /** [R6] Forget what is known of these tokens and close their sockets. */
  | ({ kind: "revoked" } & Revocation);

export interface Bus {
  /** Queues a message for the other instances; never waits and never throws. Messages of one account are told in order, newest wins. */
  tell(message: BusMessage): void;
  /**
   * @param onMessage called for each message of another instance
   * @param onGap called when messages may have been missed (the connection was away): look for yourself
   */
  listen(onMessage: (message: BusMessage) => void, onGap: () => void): Promise<void>;
  close(): Promise<void>;
}
