/** Accounts, link codes, invites, and what time takes away. */
import { describe, expect, test } from "bun:test";
import type { RetentionBounds, User } from "../../src/storage/storage.ts";
import type { UnderTest } from "../storage-contract.ts";
import {
  allChanges,
  apply,
  applyOne,
  createAccount,
  deletion,
  liveHistory,
  newDevice,
  newUser,
  NOW,
  push,
  seqOf,
  slot,
  uuid,
} from "../storage-fixtures.ts";

const LIFE = 60_000;

/** All tombstones, but for what the test says. */
const keeping = (fields: Partial<RetentionBounds>): RetentionBounds => ({
  tombstonesBefore: 0,
  tombstones: 1_000,
  limit: 10,
  ...fields,
});

export function accountsContract(storage: UnderTest): void {
  describe("accounts", () => {
    test("an account is found by address and by id, as it was created", async () => {
      const user = newUser();
      expect(await storage().createUser(user)).toBe(true);
      const stored = { ...user, tokenGeneration: 0, seq: 0 };
      expect(await storage().userByEmail(user.email)).toEqual(stored);
      expect(await storage().userById(user.id)).toEqual(stored);
      expect(await storage().userByEmail("nobody@example.org")).toBeNull();
      expect(await storage().userById(uuid())).toBeNull();
    });

    test("an address is taken once", async () => {
      const user = newUser();
      await storage().createUser(user);
      expect(await storage().createUser(newUser({ email: user.email }))).toBe(false);
      expect(await storage().userByEmail(user.email)).toMatchObject({ id: user.id });
    });

    test("pages go over all accounts by id, each once", async () => {
      const created = Array.from({ length: 7 }, () => newUser());
      for (const user of created) await storage().createUser(user);
      const paged: User[] = [];
      for (let after: string | null = null; ;) {
        const page = await storage().users(after, 3);
        expect(page.length).toBeLessThanOrEqual(3);
        paged.push(...page);
        const last = page.at(-1);
        if (last === undefined) break;
        after = last.id;
      }
      const ids = paged.map(({ id }) => id);
      expect(ids).toEqual([...new Set(ids)].toSorted());
      expect(ids).toEqual(expect.arrayContaining(created.map(({ id }) => id)));
      expect(paged.find(({ id }) => id === created[0]?.id)).toEqual({
        ...newUser(created[0]),
        tokenGeneration: 0,
        seq: 0,
      });
    });

    test("[R6] a changed password ends the tokens of before and every device but the one that is kept", async () => {
      const { userId, devices, author, second } = await createAccount(storage());
      expect(await storage().changePassword(userId, "new hash", devices[0], NOW)).toBe(1);
      expect(await storage().userById(userId)).toMatchObject({ passwordHash: "new hash", tokenGeneration: 1 });
      expect((await storage().devices(userId, NOW)).map(({ id }) => id)).toEqual([devices[0]]);
      expect(await applyOne(storage(), slot(author))).toEqual({ result: "revoked" });
      expect(await applyOne(storage(), slot({ ...second, tokenGeneration: 1 }))).toEqual({ result: "revoked" });
      expect(await applyOne(storage(), slot({ ...author, tokenGeneration: 1 }))).toMatchObject({ result: "applied" });

      expect(await storage().changePassword(userId, "newer hash", null, NOW)).toBe(2);
      expect(await storage().devices(userId, NOW)).toEqual([]);
      expect(await storage().changePassword(uuid(), "hash", null, NOW)).toBeNull();
    });

    test("a deleted account leaves nothing", async () => {
      const { userId, author, second } = await createAccount(storage());
      const gone = push(author);
      await apply(storage(), [slot(author), slot(second, { slotNumber: 2 }), push(second), gone]);
      await applyOne(storage(), deletion(second, gone.id));
      await storage().putLinkCode({ userId, codeDigest: "digest", sealedKey: "key", expiresAt: NOW + LIFE });
      const email = (await storage().userById(userId))?.email ?? "";

      expect(await storage().deleteUser(userId)).toBe(true);
      expect(await storage().deleteUser(userId)).toBe(false);
      expect(await storage().userByEmail(email)).toBeNull();
      expect(await storage().tokenState(userId, null)).toBeNull();
      expect(await applyOne(storage(), slot(author))).toEqual({ result: "revoked" });

      // What an account of the same id and address finds.
      expect(await storage().createUser(newUser({ id: userId, email }))).toBe(true);
      expect(await allChanges(storage(), userId)).toEqual([]);
      expect(await storage().slots(userId)).toEqual([]);
      expect(await liveHistory(storage(), userId)).toEqual([]);
      expect(await storage().devices(userId, NOW)).toEqual([]);
      expect(await storage().summary(userId)).toEqual({ seq: 0, oldestCursorSeq: 0, storedBytes: 0, historyItems: 0 });
      expect(await storage().takeLinkCode(userId, "digest", 5, NOW)).toBeNull();
      expect(await applyOne(storage(), slot(author))).toEqual({ result: "revoked" });
    });
  });

  describe("link codes", () => {
    const code = (userId: string, fields: { codeDigest?: string; expiresAt?: number } = {}) => ({
      userId,
      codeDigest: "right",
      sealedKey: "sealed key",
      expiresAt: NOW + LIFE,
      ...fields,
    });

    test("a code is taken once", async () => {
      const { userId } = await createAccount(storage());
      await storage().putLinkCode(code(userId));
      expect(await storage().takeLinkCode(userId, "right", 5, NOW)).toBe("sealed key");
      expect(await storage().takeLinkCode(userId, "right", 5, NOW)).toBeNull();
    });

    test("an account that is gone gets none", async () => {
      expect(await storage().putLinkCode(code(uuid()))).toBe(false);
      const { userId } = await createAccount(storage());
      expect(await storage().putLinkCode(code(userId))).toBe(true);
    });

    test("a code belongs to its account", async () => {
      const [one, other] = [await createAccount(storage()), await createAccount(storage())];
      await storage().putLinkCode(code(one.userId));
      expect(await storage().takeLinkCode(other.userId, "right", 5, NOW)).toBeNull();
      expect(await storage().takeLinkCode(one.userId, "right", 5, NOW)).toBe("sealed key");
    });

    test("a code ends with its time", async () => {
      const { userId } = await createAccount(storage());
      await storage().putLinkCode(code(userId));
      expect(await storage().takeLinkCode(userId, "right", 5, NOW + LIFE)).toBeNull();
      await storage().putLinkCode(code(userId));
      expect(await storage().takeLinkCode(userId, "right", 5, NOW + LIFE - 1)).toBe("sealed key");
    });

    test("too many wrong tries erase a code; a new one starts anew", async () => {
      const { userId } = await createAccount(storage());
      await storage().putLinkCode(code(userId));
      for (let tries = 0; tries < 2; tries += 1)
        expect(await storage().takeLinkCode(userId, "wrong", 3, NOW)).toBeNull();
      await storage().putLinkCode(code(userId, { codeDigest: "newer" }));
      for (let tries = 0; tries < 2; tries += 1)
        expect(await storage().takeLinkCode(userId, "right", 3, NOW)).toBeNull();
      expect(await storage().takeLinkCode(userId, "newer", 3, NOW)).toBe("sealed key");

      await storage().putLinkCode(code(userId));
      for (let tries = 0; tries < 3; tries += 1)
        expect(await storage().takeLinkCode(userId, "wrong", 3, NOW)).toBeNull();
      expect(await storage().takeLinkCode(userId, "right", 3, NOW)).toBeNull();
    });
  });

  describe("invites", () => {
    const invite = () => ({ digest: uuid(), createdAt: NOW, expiresAt: NOW + LIFE });

    test("an invite makes one account", async () => {
      const one = invite();
      await storage().createInvite(one);
      const user = newUser();
      expect(await storage().createInvitedUser(user, one.digest)).toBe("created");
      expect(await storage().userById(user.id)).toEqual({ ...user, tokenGeneration: 0, seq: 0 });
      expect(await storage().createInvitedUser(newUser(), one.digest)).toBe("invite_invalid");
    });

    test("a taken address does not use an invite up", async () => {
      const [one, user] = [invite(), newUser()];
      await storage().createUser(user);
      await storage().createInvite(one);
      expect(await storage().createInvitedUser(newUser({ email: user.email }), one.digest)).toBe("taken");
      expect(await storage().createInvitedUser(newUser(), one.digest)).toBe("created");
    });

    test("an invite past its time, or of nobody's making, makes none", async () => {
      const old = { ...invite(), expiresAt: NOW };
      await storage().createInvite(old);
      const user = newUser();
      expect(await storage().createInvitedUser(user, old.digest)).toBe("invite_invalid");
      expect(await storage().createInvitedUser(user, uuid())).toBe("invite_invalid");
      expect(await storage().userById(user.id)).toBeNull();
    });
  });

  describe("retention", () => {
    test("expired history becomes deletions, at most so many at a time", async () => {
      const { userId, author } = await createAccount(storage());
      const expired = [1, 2, 3].map((age) => push(author, { expiresAt: NOW - age }));
      const atOnce = push(author, { expiresAt: NOW });
      const kept = [push(author), push(author, { expiresAt: NOW + 1 })];
      await apply(storage(), [...expired, ...kept, atOnce]);

      const first = await storage().retain(userId, NOW, keeping({ limit: 3 }));
      expect(first).toMatchObject({ userId, previousSeq: 6, seq: 9, hasMore: true });
      const second = await storage().retain(userId, NOW, keeping({ limit: 3 }));
      expect(second).toMatchObject({ previousSeq: 9, seq: 10, hasMore: false });
      const told = [...(first?.changes ?? []), ...(second?.changes ?? [])];
      expect(told.map(({ kind, seq }) => [kind, seq])).toEqual([7, 8, 9, 10].map((seq) => ["history_deletion", seq]));
      expect(told.map((change) => "id" in change && change.id).toSorted()).toEqual(
        [...expired, atOnce].map(({ id }) => id).toSorted(),
      );
      expect(await allChanges(storage(), userId, 6)).toEqual(told);
      expect((await liveHistory(storage(), userId)).map(({ id }) => id).toSorted()).toEqual(
        kept.map(({ id }) => id).toSorted(),
      );
      expect(await storage().summary(userId)).toMatchObject({ seq: 10, historyItems: 2, storedBytes: 8 });
      expect((await storage().retain(userId, NOW, keeping({ limit: 3 })))?.changes).toEqual([]);
      const [again] = expired;
      if (again !== undefined) expect(await applyOne(storage(), again)).toMatchObject({ result: "stale" }); // [W8]
    });

    test("old tombstones go, oldest first, and the oldest cursor that still serves moves with them", async () => {
      const { userId, author } = await createAccount(storage());
      const pushes = [1, 2, 3].map(() => push(author));
      await apply(storage(), pushes);
      const seqs: number[] = [];
      for (const { id } of pushes) seqs.push(seqOf(await applyOne(storage(), deletion(author, id))));

      await storage().retain(userId, NOW, keeping({ tombstonesBefore: NOW })); // as old as the limit is not older
      expect(await storage().summary(userId)).toMatchObject({ oldestCursorSeq: 0 });
      await storage().retain(userId, NOW, keeping({ tombstonesBefore: NOW + 1, limit: 2 }));
      expect(await storage().summary(userId)).toMatchObject({ oldestCursorSeq: seqs[1] ?? -1, seq: seqs[2] ?? -1 });
      expect((await allChanges(storage(), userId)).map(({ seq }) => seq)).toEqual(seqs.slice(2));
      await storage().retain(userId, NOW, keeping({ tombstonesBefore: NOW + 1, limit: 2 }));
      expect(await storage().summary(userId)).toMatchObject({ oldestCursorSeq: seqs[2] ?? -1 });
      expect(await allChanges(storage(), userId)).toEqual([]);
      await storage().retain(userId, NOW, keeping({ tombstonesBefore: NOW + 1, limit: 2 }));
      expect(await storage().summary(userId)).toMatchObject({ oldestCursorSeq: seqs[2] ?? -1 });
    });

    test("it says whether more is left, of the one or the other", async () => {
      const { userId, author } = await createAccount(storage());
      const pushes = [1, 2, 3].map(() => push(author));
      await apply(storage(), [...pushes, push(author, { expiresAt: NOW })]);
      for (const { id } of pushes) await applyOne(storage(), deletion(author, id));
      const more: unknown[] = [];
      const bounds = keeping({ tombstonesBefore: NOW + 1, limit: 2 });
      for (let call = 0; call < 3; call += 1) more.push((await storage().retain(userId, NOW, bounds))?.hasMore);
      expect(more).toEqual([true, true, false]);
      expect(await allChanges(storage(), userId)).toEqual([]);
    });

    test("of more tombstones than an account may have the oldest go, however young, and the oldest cursor moves", async () => {
      const { userId, author } = await createAccount(storage());
      const pushes = [1, 2, 3, 4, 5].map(() => push(author));
      await apply(storage(), pushes);
      const seqs: number[] = [];
      for (const { id } of pushes) seqs.push(seqOf(await applyOne(storage(), deletion(author, id))));
      const bounds = keeping({ tombstones: 2, limit: 2 });

      expect(await storage().retain(userId, NOW, bounds)).toMatchObject({ changes: [], hasMore: true });
      expect(await storage().summary(userId)).toMatchObject({ oldestCursorSeq: seqs[1] ?? -1 });
      expect(await storage().retain(userId, NOW, bounds)).toMatchObject({ changes: [], hasMore: false });
      expect(await storage().summary(userId)).toMatchObject({ oldestCursorSeq: seqs[2] ?? -1, seq: seqs[4] ?? -1 });
      expect((await allChanges(storage(), userId)).map(({ seq }) => seq)).toEqual(seqs.slice(3));
      expect(await storage().retain(userId, NOW, bounds)).toMatchObject({ hasMore: false });
      expect((await allChanges(storage(), userId)).map(({ seq }) => seq)).toEqual(seqs.slice(3));
    });

    test("an account that is not there is not retained", async () => {
      expect(await storage().retain(uuid(), NOW, keeping({}))).toBeNull();
    });
  });

  test("a device can't be added to an account that is not there", async () => {
    expect(await storage().registerDevice(newDevice(uuid()), 5)).toBeNull();
  });
}
