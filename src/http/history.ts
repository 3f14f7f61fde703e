/** The history of the signed-in account. */
import type { z } from "zod";
import type { Sessions } from "../accounts/sessions.ts";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import type { Logger } from "../log.ts";
import { formatTime, uuid, type Protocol } from "../protocol.ts";
import type { FloodGuards } from "../relay/flood.ts";
import type { HistoryPage, HistoryPosition, Storage, StoredHistoryItem } from "../storage/storage.ts";
import { validate } from "../validate.ts";
import { nextTurn } from "../waiting.ts";
import type { AppContext } from "./context.ts";
import { readJson } from "./read-body.ts";
import { streamJson, type StreamDependencies } from "./stream.ts";
import { accountFull, countWrites, submit, type RestWriter } from "./written.ts";

/** PostgreSQL reads no year beyond 9999 in the form that times are written in. */
const LAST_TIME = Date.parse("9999-12-31T23:59:59.999Z");

export interface HistoryDependencies {
  config: Config;
  protocol: Protocol;
  log: Logger;
  limits: StreamDependencies["limits"];
  storage: Pick<Storage, "history" | "historyPosition" | "summary">;
  sessions: Sessions;
  floodGuards: FloodGuards;
  writer: RestWriter;
}

/** What became of one pushed item; `id` is the one that stands, which for content known under another id is that one. */
interface PushResult {
  id: string;
  created_at: string | null;
  seq: number | null;
  result: "applied" | "duplicate" | "stale" | "quota_exceeded";
}

/** Handlers of the history, one a route of app.ts. */
export function historyHandlers({
  config,
  log,
  limits,
  protocol,
  storage,
  sessions,
  floodGuards,
  writer,
}: HistoryDependencies) {
  const maxBytes = config.sync.historyPageBytes;

  return {
    /**
     * Pages by `limit` and `offset`, or by `before`: a full page links to the next, which nothing that comes meanwhile
     * shifts. A page of many bytes is written while it is read.
     */
    list: async (c: AppContext) => {
      const { limit, offset, before } = validate(protocol.historyQuery, c.req.query());
      const { userId } = c.var.identity;
      const position = before === undefined ? null : decodePosition(before);
      const first = await storage.history(userId, {
        limit,
        offset: position === null ? offset : 0,
        before: position,
        maxBytes,
      });
      const last = first.items.at(-1);
      const missing = limit - first.items.length;
      if (last === undefined || missing === 0 || !first.hasMore) {
        const headers = last !== undefined && missing === 0 ? linkToNext(limit, last) : {};
        return c.json(first.items.map(historyItemToWire), 200, headers);
      }
      const seq = (await storage.summary(userId))?.seq ?? 0;
      const end = await storage.historyPosition(userId, { before: last, offset: missing - 1 });
      const headers = end === null ? {} : linkToNext(limit, end);
      return streamJson(c, { log, limits }, jsonOf(pages(userId, first, { seq, end })), headers);
    },

    /**
     * One item: 201 when it is new, 200 when it was there ([W7]) or was deleted before ([W8], `stale`), 413 when the
     * account is full.
     *
     * An array: an array of the same results in the same order. Each item stands for itself: 201 when any is new, 200
     * when none is, 413 when none is and one did not fit. Sending all of it again is safe.
     */
    push: async (c: AppContext) => {
      const body = await readJson(c.req.raw, config.maxBodyBytes);
      const isBatch = Array.isArray(body);
      const pushed = validate(protocol.historyPush, body);
      const items = Array.isArray(pushed) ? pushed : [pushed];
      countWrites(floodGuards, c.var.identity, items);
      const results = await Promise.all(items.map((item) => pushItem(c, item)));
      const isNew = results.some(({ result }) => result === "applied");
      if (!isNew && results.some(({ result }) => result === "quota_exceeded")) throw accountFull();
      return c.json(isBatch ? results : results[0], isNew ? 201 : 200);
    },

    remove: async (c: AppContext) => {
      const id = validate(uuid, c.req.param("id"), "The item's id");
      countWrites(floodGuards, c.var.identity, [{}]);
      const outcome = await submit(writer, sessions, { kind: "history_delete", author: c.var.identity, id });
      if (outcome.result !== "applied") throw new AppError("not_found", "There is no such history item.");
      return c.body(null, 204);
    },
  };

  /**
   * A page of the API as pages of storage, from the first one to `end`, or to the oldest item where that is null.
   *
   * Each is read at a moment of its own, and the link to the next page was given before: so the page ends at `end`,
   * however many items were deleted, and what came after `seq` is left out, or the page could outgrow its limit.
   */
  async function* pages(
    userId: string,
    first: HistoryPage,
    { seq, end }: { seq: number; end: HistoryPosition | null },
  ): AsyncGenerator<StoredHistoryItem[]> {
    yield first.items;
    let last = first.items.at(-1);
    for (let { hasMore } = first; hasMore && last !== undefined && (end === null || isOlder(end, last));) {
      await nextTurn();
      const limit = config.sync.historyPageItems;
      const next = await storage.history(userId, { limit, offset: 0, before: last, maxBytes });
      yield next.items.filter((item) => item.seq <= seq && (end === null || !isOlder(item, end)));
      last = next.items.at(-1);
      ({ hasMore } = next);
    }
  }

  async function pushItem(c: AppContext, item: z.output<Protocol["historyItem"]>): Promise<PushResult> {
    const createdAt = item.created_at ?? Date.now();
    const outcome = await submit(writer, sessions, {
      kind: "history_push",
      author: c.var.identity,
      id: item.id,
      blob: item.encrypted_blob,
      contentHash: item.content_hash,
      createdAt,
      expiresAt: item.expires_at ?? null,
    });
    switch (outcome.result) {
      case "applied": {
        const effective = outcome.change.kind === "history" ? outcome.change.createdAt : createdAt;
        return { id: item.id, created_at: formatTime(effective), seq: outcome.seq, result: "applied" };
      }
      case "duplicate": {
        const stored = outcome.stored?.kind === "history" ? outcome.stored : null;
        return {
          id: stored?.id ?? item.id,
          created_at: stored === null ? null : formatTime(stored.createdAt),
          seq: outcome.seq,
          result: "duplicate",
        };
      }
      case "stale":
        return { id: item.id, created_at: null, seq: outcome.seq, result: "stale" };
      case "quota_exceeded":
        return { id: item.id, created_at: null, seq: null, result: "quota_exceeded" };
      case "not_found":
        throw new Error("a push can't miss what it pushes");
    }
  }
}

/** As it stands in GET /api/sync/history. */
export function historyItemToWire(item: StoredHistoryItem) {
  return {
    id: item.id,
    encrypted_blob: item.blob,
    content_hash: item.contentHash,
    device_id: item.deviceId,
    created_at: formatTime(item.createdAt),
    ...(item.expiresAt === null ? {} : { expires_at: formatTime(item.expiresAt) }),
    seq: item.seq,
  };
}

/** The text of the array, piece by piece. */
async function* jsonOf(pages: AsyncIterable<StoredHistoryItem[]>): AsyncGenerator<string> {
  let opening = "[";
  for await (const items of pages) {
    if (items.length === 0) continue;
    yield opening + JSON.stringify(items.map(historyItemToWire)).slice(1, -1);
    opening = ",";
  }
  yield opening === "[" ? "[]" : "]";
}

/** RFC 8288. */
function linkToNext(limit: number, last: HistoryPosition): Record<string, string> {
  return { Link: `</api/sync/history?limit=${limit}&before=${encodePosition(last)}>; rel="next"` };
}

function isOlder(left: HistoryPosition, right: HistoryPosition): boolean {
  return left.createdAt < right.createdAt || (left.createdAt === right.createdAt && left.id < right.id);
}

function encodePosition({ createdAt, id }: HistoryPosition): string {
  return Buffer.from(`${createdAt} ${id}`).toString("base64url");
}

function decodePosition(text: string): HistoryPosition {
  const [, digits, id] = /^(\d{1,15}) ([0-9a-f-]{36})$/.exec(Buffer.from(text, "base64url").toString("latin1")) ?? [];
  const createdAt = Number(digits);
  if (id === undefined || createdAt > LAST_TIME || !uuid.safeParse(id).success) {
    throw new AppError("bad_request", "before must be taken from the Link of an earlier page.");
  }
  return { createdAt, id };
}
