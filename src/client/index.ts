/**
 * A client of the ClipSlot sync server, as a library and as an example: copy the folder. It needs fetch, WebSocket and
 * crypto.randomUUID, so it runs in a browser, in Node (22 or newer) and in Bun. `../PROTOCOL.md` says why it does what it does.
 *
 * Encryption is the caller's: a blob goes in and comes out as base64 text, and nothing here looks inside.
 *
 *     const api = createApi("https://clips.example.org");
 *     const account = await api.login("ana@example.org", "correct horse battery staple");
 *     const device = await api.createDevice(account.token, "Ana's laptop", "linux");
 *
 *     const client = createSyncClient({
 *       url: "https://clips.example.org",
 *       token: device.token,
 *       onChange: () => render(client.slots(), client.history()),
 *     });
 *     await client.start();
 *     const { result } = await client.setSlot(1, await encrypt("hello"));
 *
 * A device's token is good for 30 days. Keep it, and at each start exchange it: `({ token } = await api.refresh(token))`.
 *
 * Where to read on: sync-client.ts ties the parts together; replica.ts is the state and its one rule; outbox.ts keeps
 * writes until the server has answered them.
 */
export { ApiError, createApi, type Api, type DeviceInfo, type SignedIn, type SlotRow } from "./api.ts";
export { createBackoff, type Backoff } from "./backoff.ts";
export type { QueuedWrite, WriteResult } from "./outbox.ts";
export type { HistoryItem, Slot } from "./replica.ts";
export { createMemoryStore, type SavedState, type StateStore } from "./store.ts";
export {
  createSyncClient,
  type HistoryView,
  type SlotView,
  type Status,
  type SyncClient,
  type SyncClientOptions,
} from "./sync-client.ts";
export type { Ack, ChangeMessage, ErrorMessage, Limits, ServerMessage, Welcome, Write } from "./wire.ts";
