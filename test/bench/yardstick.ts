/**
 * The yardstick: a Bun pub/sub relay that parses and re-serialises the messages and stores nothing, and an HTTP server
 * that answers the bytes it was told to. Prints its address.
 */
let answer = "";

const server = Bun.serve<{ topic: string }>({
  port: 0,
  hostname: "127.0.0.1",
  maxRequestBodySize: 64 * 1024 * 1024,
  async fetch(request, listening) {
    const url = new URL(request.url);
    if (url.pathname === "/answer") {
      answer = await request.text();
      return new Response();
    }
    const topic = url.searchParams.get("topic");
    if (topic !== null && listening.upgrade(request, { data: { topic } })) return undefined;
    return new Response(answer, { headers: { "Content-Type": "application/json" } });
  },
  websocket: {
    maxPayloadLength: 16 * 1024 * 1024,
    perMessageDeflate: false,
    open: (socket) => void socket.subscribe(socket.data.topic),
    message(socket, frame) {
      const message = JSON.parse(String(frame));
      socket.publish(
        socket.data.topic,
        JSON.stringify({
          type: "slot_updated",
          slot_number: message.slot_number,
          encrypted_blob: message.encrypted_blob,
          updated_by: "00000000-0000-0000-0000-000000000000",
          timestamp: message.timestamp,
        }),
      );
    },
  },
});
console.log(server.url.origin);
