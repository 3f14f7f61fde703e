/** Devices: who may speak for an account, when they were seen, what they have. */
import { describe, expect, test } from "bun:test";
import type { Author } from "../../src/storage/storage.ts";
import type { UnderTest } from "../storage-contract.ts";
import { apply, applyOne, createAccount, newDevice, newUser, NOW, push, slot, uuid } from "../storage-fixtures.ts";

export function devicesContract(storage: UnderTest): void {
  /** An account without devices. */
  const emptyAccount = async () => {
    const { id } = newUser();
    await storage().createUser(newUser({ id }));
    return id;
  };
  const idsOf = async (userId: string, now = NOW) => (await storage().devices(userId, now)).map(({ id }) => id);

  describe("devices", () => {
    test("[R2] a device starts at the account's seq", async () => {
      const { userId, author } = await createAccount(storage());
      await apply(storage(), [slot(author), push(author)]);
      const device = newDevice(userId);
      expect(await storage().registerDevice(device, 50)).toEqual({ revoked: [] });
      expect(await storage().tokenState(userId, device.id)).toEqual({
        tokenGeneration: 0,
        device: { confirmedSeq: 2 },
      });
      const { id, name, deviceType, createdAt } = device;
      expect(await storage().devices(userId, NOW)).toContainEqual({
        id,
        name,
        deviceType,
        createdAt,
        lastSeen: createdAt,
        confirmedSeq: 2,
        connectedUntil: 0,
      });
    });

    test("devices come oldest first, without those revoked and those whose token has ended", async () => {
      const userId = await emptyAccount();
      const [young, old, ended, revoked] = [
        newDevice(userId, { createdAt: NOW + 2 }),
        newDevice(userId, { createdAt: NOW + 1 }),
        newDevice(userId, { tokenExpiresAt: NOW + 10 }),
        newDevice(userId),
      ];
      for (const device of [young, old, ended, revoked]) await storage().registerDevice(device, 50);
      await storage().revokeDevice(userId, revoked.id, NOW);
      expect(await idsOf(userId, NOW + 9)).toEqual([ended.id, old.id, young.id]);
      expect(await idsOf(userId, NOW + 10)).toEqual([old.id, young.id]);
    });

    test("where there are too many, the longest unseen make room", async () => {
      const userId = await emptyAccount();
      const [first, second, third, fourth] = [0, 1, 2, 3].map((age) => newDevice(userId, { createdAt: NOW + age }));
      if (first === undefined || second === undefined || third === undefined || fourth === undefined)
        throw new Error("four");
      for (const device of [first, second, third]) await storage().registerDevice(device, 3);
      await storage().recordPresence([
        { userId, deviceId: first.id, lastSeen: NOW + 60, confirmedSeq: 0, connectedUntil: 0 },
      ]);
      expect(await storage().registerDevice(fourth, 3)).toEqual({ revoked: [second.id] });
      expect(await idsOf(userId)).toEqual([first.id, third.id, fourth.id]);
      const fifth = newDevice(userId, { createdAt: NOW + 4 });
      expect(await storage().registerDevice(fifth, 2)).toEqual({ revoked: [third.id, fourth.id] });
      expect(await idsOf(userId)).toEqual([first.id, fifth.id]);
    });

    test("a device whose token has ended takes no room", async () => {
      const userId = await emptyAccount();
      const [ended, live] = [newDevice(userId, { tokenExpiresAt: NOW + 1 }), newDevice(userId)];
      for (const device of [ended, live]) await storage().registerDevice(device, 2);
      expect(await storage().registerDevice(newDevice(userId, { createdAt: NOW + 1 }), 2)).toEqual({ revoked: [] });
    });

    test("[R6] a revoked device is no more, once, and its writes are refused", async () => {
      const { userId, devices, author } = await createAccount(storage());
      await applyOne(storage(), slot(author));
      expect(await storage().revokeDevice(userId, devices[0], NOW)).toBe(true);
      expect(await storage().revokeDevice(userId, devices[0], NOW)).toBe(false);
      expect(await storage().revokeDevice(userId, uuid(), NOW)).toBe(false);
      expect(await storage().revokeDevice(uuid(), devices[1], NOW)).toBe(false);
      expect(await storage().tokenState(userId, devices[0])).toEqual({ tokenGeneration: 0, device: null });
      expect(await applyOne(storage(), slot(author, { timestamp: NOW + 1 }))).toEqual({ result: "revoked" });
      expect(await storage().slots(userId)).toMatchObject([{ updatedBy: devices[0] }]); // kept for the audit
    });

    test("a device's token is extended, never shortened; a revoked one's is not", async () => {
      const userId = await emptyAccount();
      const device = newDevice(userId, { tokenExpiresAt: NOW + 10 });
      await storage().registerDevice(device, 5);
      expect(await storage().extendDevice(userId, device.id, NOW + 100)).toBe(true);
      expect(await storage().extendDevice(userId, device.id, NOW + 50)).toBe(true);
      expect(await idsOf(userId, NOW + 99)).toEqual([device.id]);
      expect(await idsOf(userId, NOW + 100)).toEqual([]);
      await storage().revokeDevice(userId, device.id, NOW);
      expect(await storage().extendDevice(userId, device.id, NOW + 999)).toBe(false);
      expect(await storage().extendDevice(userId, uuid(), NOW + 999)).toBe(false);
    });

    test("[R6] the state of a token: generation, and the device when there is one", async () => {
      const { userId, devices } = await createAccount(storage());
      const [other] = (await createAccount(storage())).devices;
      expect(await storage().tokenState(userId, null)).toEqual({ tokenGeneration: 0, device: null });
      expect(await storage().tokenState(userId, devices[1])).toMatchObject({
        device: { confirmedSeq: 0 },
      });
      expect(await storage().tokenState(userId, other)).toEqual({ tokenGeneration: 0, device: null });
      expect(await storage().tokenState(uuid(), devices[0])).toBeNull();
    });

    test("[R6] of many authors, those whose token no longer counts are named", async () => {
      const [one, other] = [await createAccount(storage()), await createAccount(storage())];
      await storage().revokeDevice(one.userId, one.devices[1], NOW);
      await storage().changePassword(other.userId, "hash", other.devices[0], NOW);
      const fresh = (author: Author) => ({ ...author, tokenGeneration: 1 });
      const alive = [one.author, one.accountAuthor, fresh(other.author), fresh(other.accountAuthor)];
      const dead = [
        one.second,
        other.author,
        other.accountAuthor,
        fresh(other.second),
        { ...one.author, userId: uuid() },
        { ...one.author, deviceId: other.devices[0] },
      ];
      const found = await storage().deadAuthors([...alive, ...dead].toSorted(() => Math.random() - 0.5));
      expect(new Set(found)).toEqual(new Set(dead));
      expect(found.every((author) => dead.includes(author))).toBe(true); // the very ones that were given
      expect(await storage().deadAuthors([])).toEqual([]);
    });

    test("[R2] what is recorded of a device only ever grows", async () => {
      const { userId, devices } = await createAccount(storage());
      const [deviceId, untouched] = devices;
      const record = (lastSeen: number, confirmedSeq: number, connectedUntil = 0) => ({
        userId,
        deviceId,
        lastSeen,
        confirmedSeq,
        connectedUntil,
      });
      await storage().recordPresence([]);
      await storage().recordPresence([
        record(NOW + 10, 5),
        record(NOW + 20, 3),
        { ...record(NOW + 99, 99), deviceId: uuid() },
        { ...record(NOW + 99, 99), userId: uuid() },
      ]);
      await storage().recordPresence([record(NOW + 5, 7)]);
      await storage().recordPresence([record(NOW + 15, 1, NOW + 60)]);
      await storage().recordPresence([record(NOW + 15, 1, NOW + 30)]);
      const stored = new Map((await storage().devices(userId, NOW)).map((device) => [device.id, device]));
      expect(stored.get(deviceId)).toMatchObject({ lastSeen: NOW + 20, confirmedSeq: 7, connectedUntil: NOW + 60 });
      expect(stored.get(untouched)).toMatchObject({ lastSeen: NOW, confirmedSeq: 0, connectedUntil: 0 });
    });
  });
}
