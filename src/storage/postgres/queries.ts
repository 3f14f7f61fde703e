/**
 * The operations of the port as queries of one client. Those that are hot are prepared by name; those that lock first
 * and look then are functions of the database (drizzle/postgres/0001_functions.sql).
 */
import { and, asc, eq, gt, isNull, sql as fragment } from "drizzle-orm";
import type {
  Author,
  Change,
  DevicePresence,
  RetentionBounds,
  Retained,
  Storage,
  StoredSlot,
  User,
} from "../storage.ts";
import { newEpoch } from "../epoch.ts";
import { changesAfter, slotChange } from "./changes.ts";
import { history, historyPosition } from "./history.ts";
import { arrayLiteral } from "./literals.ts";
import type { Client, Sql } from "./pool.ts";
import { devices, instantText, invites, serverMeta, syncedSlots, users } from "./schema.ts";
import { applyWrites } from "./writes.ts";

export interface Queries extends Omit<Storage, "dialect" | "epoch" | "foreignChanges" | "close"> {
  /** Draws the database's epoch when it has none. */
  epoch(): Promise<string>;
}

/** Prepared for this client: they are made again when its connections are replaced. */
export function prepareQueries({ sql, db }: Client): Queries {
  const given = fragment.placeholder;
  const ofAccount = eq(users.id, given("userId"));

  const summary = db
    .select({
      seq: users.seq,
      oldestCursorSeq: users.oldestCursorSeq,
      storedBytes: users.storedBytes,
      historyItems: users.historyItems,
    })
    .from(users)
    .where(ofAccount)
    .prepare("summary");
  const userById = db.select(userColumns).from(users).where(ofAccount).prepare("user_by_id");
  const userByEmail = db
    .select(userColumns)
    .from(users)
    .where(eq(users.email, given("email")))
    .prepare("user_by_email");
  const tokenState = db
    .select({ tokenGeneration: users.tokenGeneration, confirmedSeq: devices.confirmedSeq })
    .from(users)
    .leftJoin(devices, and(eq(devices.userId, users.id), eq(devices.id, given("deviceId")), isNull(devices.revokedAt)))
    .where(ofAccount)
    .prepare("token_state");
  const slots = db
    .select({
      slotNumber: syncedSlots.slotNumber,
      // octet_length looks at a large blob's pointer only, and what is null is not fetched.
      blob: fragment<string | null>`
        CASE WHEN sum(octet_length(${syncedSlots.encryptedBlob})) OVER () <= ${given("maxBytes")}::bigint
        THEN ${syncedSlots.encryptedBlob} END`.mapWith(syncedSlots.encryptedBlob),
      updatedAt: syncedSlots.updatedAt,
      updatedBy: syncedSlots.updatedBy,
      seq: syncedSlots.seq,
    })
    .from(syncedSlots)
    .where(and(eq(syncedSlots.userId, given("userId")), eq(syncedSlots.cleared, false)))
    .orderBy(asc(syncedSlots.slotNumber))
    .prepare("slots");

  return {
    applyWrites: (writes, limits, now) => applyWrites(sql, writes, limits, now),
    changesAfter: (userId, afterSeq, page) => changesAfter(sql, userId, afterSeq, page),
    async accountSeqs(userIds) {
      const rows = await sql<{ id: string; seq: number }[]>`
        SELECT id, seq FROM users WHERE id = ANY (${arrayLiteral(userIds)}::uuid[])`;
      return new Map(rows.map(({ id, seq }) => [id, seq]));
    },
    summary: async (userId) => first(await summary.execute({ userId })),
    slot: (userId, slotNumber) => slotChange(sql, userId, slotNumber),
    async slots(userId, maxBytes = Number.MAX_SAFE_INTEGER) {
      const found: StoredSlot[] = [];
      for (const { blob, ...row } of await slots.execute({ userId, maxBytes })) {
        if (blob === null) return null;
        found.push({ ...row, blob });
      }
      return found;
    },
    history: (userId, page) => history(sql, userId, page),
    historyPosition: (userId, place) => historyPosition(sql, userId, place),

    async createUser(user) {
      const created = await db
        .insert(users)
        .values(user)
        .onConflictDoNothing({ target: users.email })
        .returning({ id: users.id });
      return created.length === 1;
    },
    userByEmail: async (email) => first(await userByEmail.execute({ email })),
    userById: async (userId) => first(await userById.execute({ userId })),
    users: (after, limit) =>
      db
        .select(userColumns)
        .from(users)
        .where(after === null ? undefined : gt(users.id, after))
        .orderBy(asc(users.id))
        .limit(limit),
    changePassword: (userId, passwordHash, keepDeviceId, now) =>
      value<number | null>(sql`SELECT change_password(${userId}, ${passwordHash}, ${keepDeviceId}, ${now}) AS value`),
    // The other tables' keys cascade, once the account's row is locked.
    async deleteUser(userId) {
      const deleted = await db.delete(users).where(eq(users.id, userId)).returning({ id: users.id });
      return deleted.length === 1;
    },

    async registerDevice(device, maxDevices) {
      const revoked = await value<string[] | null>(
        sql`SELECT register_device(
          ${device.userId}, ${device.id}, ${device.name}, ${device.deviceType},
          ${device.createdAt}, ${device.tokenExpiresAt}, ${maxDevices}
        ) AS value`,
      );
      return revoked === null ? null : { revoked };
    },
    devices: (userId, now) =>
      db
        .select({
          id: devices.id,
          name: devices.name,
          deviceType: devices.deviceType,
          lastSeen: devices.lastSeen,
          createdAt: devices.createdAt,
          confirmedSeq: devices.confirmedSeq,
          connectedUntil: devices.connectedUntil,
        })
        .from(devices)
        .where(and(eq(devices.userId, userId), isNull(devices.revokedAt), gt(devices.tokenExpiresAt, now)))
        .orderBy(asc(devices.createdAt), asc(devices.id)),
    async revokeDevice(userId, deviceId, now) {
      // The lock of the account: a write that has seen the device live commits first, one that comes later sees it gone.
      const revoked = await sql`
        WITH account AS MATERIALIZED (SELECT id FROM users WHERE id = ${userId} FOR NO KEY UPDATE)
        UPDATE devices SET revoked_at = from_ms(${now})
        FROM account
        WHERE devices.user_id = account.id AND devices.id = ${deviceId} AND devices.revoked_at IS NULL`;
      return revoked.count === 1;
    },
    async extendDevice(userId, deviceId, tokenExpiresAt) {
      const extended = await sql`
        UPDATE devices SET token_expires_at = greatest(token_expires_at, from_ms(${tokenExpiresAt}))
        WHERE user_id = ${userId} AND id = ${deviceId} AND revoked_at IS NULL`;
      return extended.count === 1;
    },
    async tokenState(userId, deviceId) {
      const found = first(await tokenState.execute({ userId, deviceId }));
      if (found === null) return null;
      const { tokenGeneration, confirmedSeq } = found;
      return { tokenGeneration, device: confirmedSeq === null ? null : { confirmedSeq } };
    },
    deadAuthors: (authors) => deadAuthors(sql, authors),
    recordPresence: (presences) => recordPresence(sql, presences),

    async putLinkCode({ userId, codeDigest, sealedKey, expiresAt }) {
      // Locked first: an account that is being deleted is gone by the time we have it.
      const put = await sql`
        WITH account AS (SELECT id FROM users WHERE id = ${userId} FOR KEY SHARE)
        INSERT INTO link_codes (user_id, code_digest, sealed_key, expires_at)
        SELECT id, ${codeDigest}, ${sealedKey}, ${instantText(expiresAt)} FROM account
        ON CONFLICT (user_id) DO UPDATE SET code_digest = excluded.code_digest, sealed_key = excluded.sealed_key,
          expires_at = excluded.expires_at, wrong_tries = 0
        RETURNING user_id`;
      return put.length === 1;
    },
    takeLinkCode: (userId, codeDigest, maxWrongTries, now) =>
      value<string | null>(sql`SELECT take_link_code(${userId}, ${codeDigest}, ${maxWrongTries}, ${now}) AS value`),
    async createInvite(invite) {
      await db.insert(invites).values(invite);
    },
    createInvitedUser: ({ id, email, passwordHash, createdAt }, inviteDigest) =>
      value<"created" | "taken" | "invite_invalid">(
        sql`SELECT create_invited_user(${id}, ${email}, ${passwordHash}, ${createdAt}, ${inviteDigest}) AS value`,
      ),

    retain: (userId, now, bounds) => retain(sql, userId, now, bounds),
    async ping() {
      await sql`SELECT 1`;
    },
    async epoch() {
      await db.insert(serverMeta).values({ key: "epoch", value: newEpoch() }).onConflictDoNothing();
      const stored = first(await db.select().from(serverMeta).where(eq(serverMeta.key, "epoch")));
      if (stored === null) throw new Error("the database has no epoch");
      return stored.value;
    },
  };
}

const userColumns = {
  id: users.id,
  email: users.email,
  passwordHash: users.passwordHash,
  createdAt: users.createdAt,
  tokenGeneration: users.tokenGeneration,
  seq: users.seq,
} satisfies Record<keyof User, unknown>;

async function deadAuthors(sql: Sql, authors: readonly Author[]): Promise<Author[]> {
  const given = authors.map(({ userId, deviceId, tokenGeneration }, place) => ({
    place,
    account: userId,
    device: deviceId,
    generation: tokenGeneration,
  }));
  // Subqueries that answer one author each: however large the tables, two look-ups an author.
  const dead = await sql<{ place: number }[]>`
    SELECT place
    FROM json_to_recordset(${JSON.stringify(given)}) AS author (place integer, account uuid, device uuid, generation integer)
    WHERE NOT coalesce((SELECT author.generation >= token_generation FROM users WHERE id = author.account), false)
      OR NOT coalesce(
        author.device IS NULL
          OR (SELECT revoked_at IS NULL FROM devices WHERE user_id = author.account AND id = author.device),
        false
      )`;
  const places = new Set(dead.map(({ place }) => place));
  return authors.filter((_, place) => places.has(place));
}

async function recordPresence(sql: Sql, presences: readonly DevicePresence[]): Promise<void> {
  const given = presences.map(({ userId, deviceId, lastSeen, confirmedSeq, connectedUntil }) => ({
    account: userId,
    device: deviceId,
    last_seen: lastSeen,
    confirmed_seq: confirmedSeq,
    connected_until: connectedUntil,
  }));
  await sql`SELECT record_presence(${JSON.stringify(given)})`;
}

async function retain(
  sql: Sql,
  userId: string,
  now: number,
  { tombstonesBefore, tombstones, limit }: RetentionBounds,
): Promise<Retained | null> {
  const rows = await sql<{ previous_seq: number; id: string | null; more: boolean }[]>`
    SELECT * FROM retain_account(${userId}, ${now}, ${tombstonesBefore}, ${tombstones}, ${limit})`;
  const [row] = rows;
  if (row === undefined) return null;
  const { previous_seq: previousSeq, more: hasMore } = row;
  const changes = rows.flatMap(({ id }, index): Change[] =>
    id === null ? [] : [{ kind: "history_deletion", seq: previousSeq + 1 + index, id }],
  );
  return { userId, previousSeq, seq: previousSeq + changes.length, changes, hasMore };
}

/** What a query of one row and one column, `value`, returns. */
async function value<T>(query: PromiseLike<readonly { value?: T }[]>): Promise<T> {
  const [row] = await query;
  if (row?.value === undefined) throw new Error("a function of the database returned nothing");
  return row.value;
}

function first<T>(rows: readonly T[]): T | null {
  return rows[0] ?? null;
}
