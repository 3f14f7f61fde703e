/** The history of the signed-in account. */
import type { z } from "zod";
import type { Sessions } from "../accounts/sessions.ts";
import type { Config } from "../config.ts";
import { AppError } from "../errors.ts";
import { formatTime, uuid, type Protocol } from "../protocol.ts";
import type { HistoryPosition, Storage, StoredHistoryItem } from "../storage/storage.ts";
import { validate } from "../validate.ts";
import type { AppContext } from "./context.ts";
import { readJson } from "./read-body.ts";
import { accountFull, submit, type RestWriter } from "./written.ts";

export interface HistoryDependencies {
  config: Config;
  protocol: Protocol;
  storage: Pick<Storage, "history">;
  sessions: Sessions;
  writer: RestWriter;
}

/** What became of one pushed item; `id` is the one that stands, which for content known under another id is that one. */
interface PushResult {
  id: string;
  created_at: string | null;
  seq: number | null;
  result: "applied" | "duplicate" | "stale" | "quota_exceeded";
}

export function historyHandlers({ config, protocol, storage, sessions, writer }: HistoryDependencies) {
  return {
    /** Pages by `limit` and `offset`, or by `before`: a full page links to the next, which nothing that comes meanwhile shifts. */
    list: async (c: AppContext) => {
      const { limit, offset, before } = validate(protocol.historyQuery, c.req.query());
      const position = before === undefined ? null : decodePosition(before);
      const items = await storage.history(c.var.identity.userId, {
        limit,
        offset: position === null ? offset : 0,
        before: position,
      });
      const last = items.at(-1);
      if (last !== undefined && items.length === limit) {
        c.header("Link", `</api/sync/history?limit=${limit}&before=${encodePosition(last)}>; rel="next"`); // RFC 8288
      }
      return c.json(items.map(historyItemToWire));
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
      const results = await Promise.all(items.map((item) => pushItem(c, item)));
      const isNew = results.some(({ result }) => result === "applied");
      if (!isNew && results.some(({ result }) => result === "quota_exceeded")) throw accountFull();
      return c.json(isBatch ? results : results[0], isNew ? 201 : 200);
    },

    remove: async (c: AppContext) => {
      const id = validate(uuid, c.req.param("id"), "The item's id");
      const outcome = await submit(writer, sessions, { kind: "history_delete", author: c.var.identity, id });
      if (outcome.result !== "applied") throw new AppError("not_found", "There is no such history item.");
      return c.body(null, 204);
    },
  };

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

function encodePosition({ createdAt, id }: HistoryPosition): string {
  return Buffer.from(`${createdAt} ${id}`).toString("base64url");
}

function decodePosition(text: string): HistoryPosition {
  const [, createdAt, id] =
    /^(\d{1,15}) ([0-9a-f-]{36})$/.exec(Buffer.from(text, "base64url").toString("latin1")) ?? [];
  if (createdAt === undefined || id === undefined || !uuid.safeParse(id).success) {
    throw new AppError("bad_request", "before must be taken from the Link of an earlier page.");
  }
  return { createdAt: Number(createdAt), id };
}
