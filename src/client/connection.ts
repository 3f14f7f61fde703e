/**
 * One WebSocket, and whether it is still alive. After a machine slept, a socket can look open for hours while nothing
 * comes any more; and a browser can't send pings. So a silent connection is asked something that is always answered
 * (an unknown type with a `ref` gets an error with that `ref`, [P6]), and given up when no answer comes.
 */
import { parseMessage, type ServerMessage, type Write } from "./wire.ts";

/** The part of WebSocket that is used: a test, or a platform without it, brings its own. */
export type SocketLike = Pick<WebSocket, "send" | "close" | "onopen" | "onmessage" | "onclose">;
export type OpenSocket = (url: string, protocols: string[]) => SocketLike;

export interface ConnectionOptions {
  /** Of the server. */
  url: string;
  token: string;
  cursor: string | undefined;
  openSocket: OpenSocket;
  /** Silence after which the server is asked whether it is there. */
  silenceMs: number;
  /** How long it may take to answer, and to open the socket. */
  answerMs: number;
  onMessage: (message: ServerMessage) => void;
  /** Called once. @param opened whether the server ever let it in */
  onClose: (code: number, opened: boolean) => void;
}

export interface Connection {
  send(ref: string, write: Write): void;
  /** Asks whether the other side is there, now. */
  probe(): void;
  /** No more callbacks come. */
  close(): void;
}

/** RFC 6455 §7.1.5: what a connection that was lost without a word counts as. */
const LOST = 1006;
const PROBE = JSON.stringify({ type: "are_you_there", ref: "probe" });

/** Opens the socket at once. `onClose` is called once, also when it never opened; never after `close`. */
export function openConnection(options: ConnectionOptions): Connection {
  const { silenceMs, answerMs, onMessage, onClose } = options;
  let opened = false;
  let over = false;
  let timer = setTimeout(lost, answerMs);

  const address = new URL("/api/sync/ws", options.url);
  address.protocol = address.protocol.replace("http", "ws");
  address.searchParams.set("protocol", "2");
  if (options.cursor !== undefined) address.searchParams.set("cursor", options.cursor);
  // A token in the address would end up in logs, and a browser can set no header: it travels as a subprotocol ([P2]).
  const socket = options.openSocket(address.href, ["clipslot", options.token]);
  socket.onopen = () => {
    opened = true;
  };
  socket.onmessage = ({ data }: { data: unknown }) => {
    if (over) return;
    watch();
    const message = typeof data === "string" ? parseMessage(data) : undefined;
    if (message !== undefined) onMessage(message);
  };
  socket.onclose = ({ code }) => end(code);

  return {
    send: (ref, write) => socket.send(JSON.stringify({ ...write, ref })),
    probe,
    close() {
      over = true;
      clearTimeout(timer);
      socket.close(1000);
    },
  };

  function watch(): void {
    clearTimeout(timer);
    timer = setTimeout(probe, silenceMs);
  }

  function probe(): void {
    if (over || !opened) return;
    clearTimeout(timer);
    timer = setTimeout(lost, answerMs);
    socket.send(PROBE);
  }

  function lost(): void {
    end(LOST);
    socket.close();
  }

  function end(code: number): void {
    if (over) return;
    over = true;
    clearTimeout(timer);
    onClose(code, opened);
  }
}
