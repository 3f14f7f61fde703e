CREATE INDEX `idx_synced_history_expires` ON `synced_history` (`user_id`,`expires_at`) WHERE "synced_history"."expires_at" IS NOT NULL;--> statement-breakpoint
CREATE INDEX `idx_synced_slots_seq` ON `synced_slots` (`user_id`,`seq`);--> statement-breakpoint
-- Statistics do harm here: taken while there was one account, they say that its id selects nothing, and every read of an
-- account scans all of them. Without, the planner takes the index that begins with the account, as each query is made for.
DROP TABLE IF EXISTS sqlite_stat1;--> statement-breakpoint
DROP TABLE IF EXISTS sqlite_stat4;--> statement-breakpoint
-- So that the connection that migrates forgets them, too; it makes an empty table.
ANALYZE sqlite_schema;--> statement-breakpoint
DROP TABLE IF EXISTS sqlite_stat1;
