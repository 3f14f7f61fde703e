/**
 * The storage port on SQLite. bun:sqlite is synchronous: an operation is done before its promise is made, and one that
 * changes several rows is one immediate transaction.
 */
import { SQLiteError } from "bun:sqlite";
import { and, asc, eq, gt, inArray, isNull, ne, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/bun-sqlite";
import { AppError } from "../../errors.ts";
import { nextTurn } from "../../waiting.ts";
import type { Device, Storage, User } from "../storage.ts";
import { prepareChanges, type ChangesAfter } from "./changes.ts";
import { prepareReads } from "./reads.ts";
import { openSqliteFile, openSqliteFileBeside } from "./open.ts";
import { devices, invites, linkCodes, users } from "./schema.ts";
import { prepareUpkeep, type Upkeep } from "./upkeep.ts";
import { prepareWrites } from "./writes.ts";

/**
 * Opens (and creates, and migrates) the database in this file, for the one server on it or for a command beside it.
 *
 * @throws DatabaseInUseError when a server holds the file and that is in the way
 */
export async function openSqliteStorage(path: string, access: "server" | "command" = "server"): Promise<Storage> {
  const file = access === "server" ? openSqliteFile(path) : openSqliteFileBeside(path);
  const { client } = file;
  const db = drizzle({ client });
  const writes = prepareWrites(client);
  // When it is first asked for: making these queries is a tenth of a start.
  let preparedChanges: ChangesAfter | undefined;
  const changesAfter: ChangesAfter = (...given) => (preparedChanges ??= prepareChanges(client, db))(...given);
  let preparedUpkeep: Upkeep | undefined;
  const upkeep = () => (preparedUpkeep ??= prepareUpkeep(client));
  const given = sql.placeholder;

  // Moves with the commits of other connections, not with our own (sqlite.org/pragma.html#pragma_data_version).
  const dataVersion = client.query<{ data_version: number }, []>("PRAGMA data_version");
  const accountSeq = client.query<{ seq: number }, [userId: string]>("SELECT seq FROM users WHERE id = ?");
  const tokenGeneration = db
    .select({ tokenGeneration: users.tokenGeneration })
    .from(users)
    .where(eq(users.id, given("userId")))
    .prepare();
  const liveDevice = db
    .select({ confirmedSeq: devices.confirmedSeq })
    .from(devices)
    .where(and(eq(devices.userId, given("userId")), eq(devices.id, given("deviceId")), isNull(devices.revokedAt)))
    .prepare();
  const reads = prepareReads(client);
  const savePresence = db
    .update(devices)
    .set({
      lastSeen: sql`max(${devices.lastSeen}, ${given("lastSeen")})`,
      confirmedSeq: sql`max(${devices.confirmedSeq}, ${given("confirmedSeq")})`,
      connectedUntil: sql`max(${devices.connectedUntil}, ${given("connectedUntil")})`,
    })
    .where(and(eq(devices.userId, given("userId")), eq(devices.id, given("deviceId"))))
    .prepare();

  return {
    dialect: "sqlite",
    epoch: file.epoch,

    applyWrites: (batch, limits, now) => read(() => writes.apply(batch, limits, now)),

    changesAfter: (userId, afterSeq, page) => read(() => changesAfter(userId, afterSeq, page)),

    accountSeqs: (userIds) =>
      read(() => {
        const seqs = new Map<string, number>();
        for (const userId of userIds) {
          const account = accountSeq.get(userId);
          if (account !== null) seqs.set(userId, account.seq);
        }
        return seqs;
      }),

    summary: (userId) =>
      read(
        () =>
          db
            .select({
              seq: users.seq,
              oldestCursorSeq: users.oldestCursorSeq,
              storedBytes: users.storedBytes,
              historyItems: users.historyItems,
            })
            .from(users)
            .where(eq(users.id, userId))
            .get() ?? null,
      ),

    slot: (userId, slotNumber) => read(() => reads.slot(userId, slotNumber)),

    slots: (userId, maxBytes) => read(() => reads.slots(userId, maxBytes)),

    history: (userId, page) => read(() => reads.history(userId, page)),

    historyPosition: (userId, place) => read(() => reads.historyPosition(userId, place)),

    createUser: (user) =>
      write(() => db.insert(users).values(user).onConflictDoNothing().returning({ id: users.id }).all().length === 1),

    userByEmail: (email) => read(() => oneUser(db.select(userColumns).from(users).where(eq(users.email, email)).get())),

    userById: (userId) => read(() => oneUser(db.select(userColumns).from(users).where(eq(users.id, userId)).get())),

    users: (after, limit) =>
      read(() =>
        db
          .select(userColumns)
          .from(users)
          .where(after === null ? undefined : gt(users.id, after))
          .orderBy(users.id)
          .limit(limit)
          .all(),
      ),

    changePassword: (userId, passwordHash, keepDeviceId, now) =>
      transaction(() => {
        const changed = db
          .update(users)
          .set({ passwordHash, tokenGeneration: sql`${users.tokenGeneration} + 1` })
          .where(eq(users.id, userId))
          .returning({ tokenGeneration: users.tokenGeneration })
          .get();
        if (changed === undefined) return null;
        db.update(devices)
          .set({ revokedAt: now })
          .where(
            and(
              eq(devices.userId, userId),
              isNull(devices.revokedAt),
              keepDeviceId === null ? undefined : ne(devices.id, keepDeviceId),
            ),
          )
          .run();
        return changed.tokenGeneration;
      }),

    async deleteUser(userId) {
      if (!(await write(() => upkeep().markDeleted(userId)))) return false;
      while (!(await write(() => upkeep().erase(userId)))) await nextTurn();
      return true;
    },

    registerDevice: (device, maxDevices) =>
      transaction(() => {
        const account = db.select({ seq: users.seq }).from(users).where(eq(users.id, device.userId)).get();
        if (account === undefined) return null;
        const live = db
          .select({ id: devices.id })
          .from(devices)
          .where(liveDevices(device.userId, device.createdAt))
          .orderBy(asc(devices.lastSeen), asc(devices.id))
          .all();
        const revoked = live.slice(0, Math.max(0, live.length + 1 - maxDevices)).map(({ id }) => id);
        if (revoked.length > 0) {
          db.update(devices)
            .set({ revokedAt: device.createdAt })
            .where(and(eq(devices.userId, device.userId), inArray(devices.id, revoked)))
            .run();
        }
        db.insert(devices)
          .values({ ...device, lastSeen: device.createdAt, confirmedSeq: account.seq })
          .run();
        return { revoked };
      }),

    devices: (userId, now) =>
      read(() =>
        db
          .select(deviceColumns)
          .from(devices)
          .where(liveDevices(userId, now))
          .orderBy(asc(devices.createdAt), asc(devices.id))
          .all(),
      ),

    revokeDevice: (userId, deviceId, now) =>
      write(
        () =>
          db
            .update(devices)
            .set({ revokedAt: now })
            .where(and(eq(devices.userId, userId), eq(devices.id, deviceId), isNull(devices.revokedAt)))
            .returning({ id: devices.id })
            .all().length === 1,
      ),

    extendDevice: (userId, deviceId, tokenExpiresAt) =>
      write(
        () =>
          db
            .update(devices)
            .set({ tokenExpiresAt: sql`max(${devices.tokenExpiresAt}, ${tokenExpiresAt})` })
            .where(and(eq(devices.userId, userId), eq(devices.id, deviceId), isNull(devices.revokedAt)))
            .returning({ id: devices.id })
            .all().length === 1,
      ),

    tokenState: (userId, deviceId) =>
      read(() => {
        const account = tokenGeneration.get({ userId });
        if (account === undefined) return null;
        return {
          tokenGeneration: account.tokenGeneration,
          device: deviceId === null ? null : (liveDevice.get({ userId, deviceId }) ?? null),
        };
      }),

    deadAuthors: (authors) =>
      read(() =>
        authors.filter((author) => {
          const account = tokenGeneration.get({ userId: author.userId });
          if (account === undefined || author.tokenGeneration < account.tokenGeneration) return true;
          return (
            author.deviceId !== null &&
            liveDevice.get({ userId: author.userId, deviceId: author.deviceId }) === undefined
          );
        }),
      ),

    recordPresence: (presences) =>
      transaction(() => {
        for (const presence of presences) savePresence.run({ ...presence });
      }),

    putLinkCode: (code) =>
      transaction(() => {
        const account = db.select({ id: users.id }).from(users).where(eq(users.id, code.userId)).get();
        if (account === undefined) return false;
        db.insert(linkCodes)
          .values(code)
          .onConflictDoUpdate({ target: linkCodes.userId, set: { ...code, wrongTries: 0 } })
          .run();
        return true;
      }),

    takeLinkCode: (userId, codeDigest, maxWrongTries, now) =>
      transaction(() => {
        const code = db.select().from(linkCodes).where(eq(linkCodes.userId, userId)).get();
        if (code === undefined) return null;
        const right = code.codeDigest === codeDigest && code.expiresAt > now;
        const spent = right || code.expiresAt <= now || code.wrongTries + 1 >= maxWrongTries;
        if (spent) db.delete(linkCodes).where(eq(linkCodes.userId, userId)).run();
        else
          db.update(linkCodes)
            .set({ wrongTries: code.wrongTries + 1 })
            .where(eq(linkCodes.userId, userId))
            .run();
        return right ? code.sealedKey : null;
      }),

    createInvite: (invite) =>
      write(() => {
        db.insert(invites).values(invite).run();
      }),

    createInvitedUser: (user, inviteDigest) =>
      transaction(() => {
        const invite = db.select().from(invites).where(eq(invites.digest, inviteDigest)).get();
        if (invite === undefined || invite.expiresAt <= user.createdAt) return "invite_invalid";
        const created =
          db.insert(users).values(user).onConflictDoNothing().returning({ id: users.id }).all().length === 1;
        if (!created) return "taken";
        db.delete(invites).where(eq(invites.digest, inviteDigest)).run();
        return "created";
      }),

    retain: (userId, now, bounds) =>
      read(() => {
        const retained = upkeep().retain(userId, now, bounds);
        if (retained !== null && retained.changes.length > 0) writes.forget();
        return retained;
      }),

    foreignChanges: () => read(() => dataVersion.get()?.data_version ?? 0),

    ping: () =>
      read(() => {
        db.get(sql`SELECT 1`);
      }),

    async close() {
      file.close();
    },
  };

  async function read<T>(operation: () => T): Promise<T> {
    try {
      return operation();
    } catch (error) {
      throw translate(error);
    }
  }

  function write<T>(operation: () => T): Promise<T> {
    return read(() => {
      const done = operation();
      writes.forget();
      return done;
    });
  }

  function transaction<T>(operation: () => T): Promise<T> {
    return write(() => client.transaction(operation).immediate());
  }
}

const userColumns = {
  id: users.id,
  email: users.email,
  passwordHash: users.passwordHash,
  createdAt: users.createdAt,
  tokenGeneration: users.tokenGeneration,
  seq: users.seq,
};

const deviceColumns = {
  id: devices.id,
  name: devices.name,
  deviceType: devices.deviceType,
  lastSeen: devices.lastSeen,
  createdAt: devices.createdAt,
  confirmedSeq: devices.confirmedSeq,
  connectedUntil: devices.connectedUntil,
} satisfies Record<keyof Device, unknown>;

const oneUser = (user: User | undefined): User | null => user ?? null;

/** Not revoked, and a token of theirs still counts. */
function liveDevices(userId: string, now: number) {
  return and(eq(devices.userId, userId), isNull(devices.revokedAt), gt(devices.tokenExpiresAt, now));
}

/** SQLite's result codes (sqlite.org/rescode.html) that say something about the disk or the file, not about our SQL. */
function translate(error: unknown): unknown {
  const fault = error instanceof Error && error.cause instanceof SQLiteError ? error.cause : error;
  if (!(fault instanceof SQLiteError)) return error;
  if (fault.code === "SQLITE_FULL") return new AppError("disk_full", "The server's disk is full.", { cause: fault });
  if (/^SQLITE_(IOERR|BUSY|READONLY|CANTOPEN)/.test(fault.code ?? "")) {
    return new AppError("unavailable", "The database can't be used right now.", { cause: fault, retryAfterMs: 2_000 });
  }
  return error;
}
