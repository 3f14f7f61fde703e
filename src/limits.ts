import type { Config } from "./config.ts";

/** What a client should know before it runs into it: in GET /api/info, in the account's page and in `welcome`. */
export function publicLimits(config: Config) {
  return {
    slots: config.sync.slotCount,
    blob_bytes: config.maxBlobBytes,
    body_bytes: config.maxBodyBytes,
    history_items: config.historyLimit,
    history_batch_items: config.sync.historyBatchItems,
    account_bytes: config.accountStorageBytes,
    devices: config.auth.devicesPerAccount,
  };
}
