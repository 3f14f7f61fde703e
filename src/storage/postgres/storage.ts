/**
 * The storage port on PostgreSQL. Every operation is one statement, so each is atomic without a transaction of ours:
 * see pool.ts for why that matters.
 */
import type { Logger } from "../../log.ts";
import { migratePostgres } from "../migrate.ts";
import type { Storage } from "../storage.ts";
import { Pool, type PoolOptions } from "./pool.ts";
import { prepareQueries } from "./queries.ts";

export interface PostgresOptions extends PoolOptions {
  /** Past a pooler: where the migrations run. */
  directUrl: string;
}

/**
 * Brings the database up to date and opens it.
 *
 * @throws AppError `unavailable` when it can't be reached: waiting for it is up to the caller
 * @throws NewerDatabaseError when a newer server has written it
 */
export async function openPostgresStorage(options: PostgresOptions, log?: Logger): Promise<Storage> {
  await migratePostgres(options.directUrl, options);
  const pool = new Pool(options, prepareQueries, log);
  let epoch: string;
  try {
    epoch = await pool.run((queries) => queries.epoch());
  } catch (error) {
    await pool.close();
    throw error;
  }
  return {
    dialect: "postgres",
    epoch,
    applyWrites: (...given) => pool.run((queries) => queries.applyWrites(...given)),
    changesAfter: (...given) => pool.run((queries) => queries.changesAfter(...given)),
    accountSeqs: (...given) => pool.run((queries) => queries.accountSeqs(...given)),
    summary: (...given) => pool.run((queries) => queries.summary(...given)),
    slot: (...given) => pool.run((queries) => queries.slot(...given)),
    slots: (...given) => pool.run((queries) => queries.slots(...given)),
    history: (...given) => pool.run((queries) => queries.history(...given)),
    historyPosition: (...given) => pool.run((queries) => queries.historyPosition(...given)),
    createUser: (...given) => pool.run((queries) => queries.createUser(...given)),
    userByEmail: (...given) => pool.run((queries) => queries.userByEmail(...given)),
    userById: (...given) => pool.run((queries) => queries.userById(...given)),
    users: (...given) => pool.run((queries) => queries.users(...given)),
    changePassword: (...given) => pool.run((queries) => queries.changePassword(...given)),
    deleteUser: (...given) => pool.run((queries) => queries.deleteUser(...given)),
    registerDevice: (...given) => pool.run((queries) => queries.registerDevice(...given)),
    devices: (...given) => pool.run((queries) => queries.devices(...given)),
    revokeDevice: (...given) => pool.run((queries) => queries.revokeDevice(...given)),
    extendDevice: (...given) => pool.run((queries) => queries.extendDevice(...given)),
    tokenState: (...given) => pool.run((queries) => queries.tokenState(...given)),
    deadAuthors: (...given) => pool.run((queries) => queries.deadAuthors(...given)),
    recordPresence: (...given) => pool.run((queries) => queries.recordPresence(...given)),
    putLinkCode: (...given) => pool.run((queries) => queries.putLinkCode(...given)),
    takeLinkCode: (...given) => pool.run((queries) => queries.takeLinkCode(...given)),
    createInvite: (...given) => pool.run((queries) => queries.createInvite(...given)),
    createInvitedUser: (...given) => pool.run((queries) => queries.createInvitedUser(...given)),
    retain: (...given) => pool.run((queries) => queries.retain(...given)),
    foreignChanges: () => Promise.resolve(0),
    ping: () => pool.run((queries) => queries.ping()),
    close: () => pool.close(),
  };
}
