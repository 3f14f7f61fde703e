/** What every storage promises, whatever database is beneath. */
import { afterAll, beforeAll, describe } from "bun:test";
import type { Storage } from "../src/storage/storage.ts";
import { accountsContract } from "./storage-contract/accounts.ts";
import { devicesContract } from "./storage-contract/devices.ts";
import { historyContract } from "./storage-contract/history.ts";
import { limitsContract } from "./storage-contract/limits.ts";
import { racesContract } from "./storage-contract/races.ts";
import { readsContract } from "./storage-contract/reads.ts";
import { slotsContract } from "./storage-contract/slots.ts";

/** The storage under test; to be asked for within a test. */
export type UnderTest = () => Storage;

const START_DEADLINE_MS = 30_000;

/** @param open an empty database; the tests keep apart by accounts of their own */
export function storageContract(
  name: string,
  open: () => Promise<{ storage: Storage; cleanup: () => Promise<void> }>,
): void {
  describe(`storage contract: ${name}`, () => {
    let opened: Awaited<ReturnType<typeof open>> | undefined;
    beforeAll(async () => {
      opened = await open();
    }, START_DEADLINE_MS);
    afterAll(() => opened?.cleanup());
    const storage: UnderTest = () => {
      if (opened === undefined) throw new Error("the storage did not open");
      return opened.storage;
    };

    for (const contract of [
      slotsContract,
      historyContract,
      limitsContract,
      readsContract,
      accountsContract,
      devicesContract,
      racesContract,
    ]) {
      contract(storage);
    }
  });
}
