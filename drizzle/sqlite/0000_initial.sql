CREATE TABLE `devices` (
	`user_id` text NOT NULL,
	`id` text NOT NULL,
	`name` text NOT NULL,
	`device_type` text NOT NULL,
	`last_seen` integer NOT NULL,
	`created_at` integer NOT NULL,
	`revoked_at` integer,
	`token_expires_at` integer NOT NULL,
	`confirmed_seq` integer NOT NULL,
	PRIMARY KEY(`user_id`, `id`),
	FOREIGN KEY (`user_id`) REFERENCES `users`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE TABLE `history_tombstones` (
	`user_id` text NOT NULL,
	`id` text NOT NULL,
	`seq` integer NOT NULL,
	`deleted_at` integer NOT NULL,
	PRIMARY KEY(`user_id`, `id`),
	FOREIGN KEY (`user_id`) REFERENCES `users`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE INDEX `idx_history_tombstones_seq` ON `history_tombstones` (`user_id`,`seq`);--> statement-breakpoint
CREATE TABLE `invites` (
	`digest` text PRIMARY KEY NOT NULL,
	`created_at` integer NOT NULL,
	`expires_at` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `link_codes` (
	`user_id` text PRIMARY KEY NOT NULL,
	`code_digest` text NOT NULL,
	`sealed_key` text NOT NULL,
	`expires_at` integer NOT NULL,
	`wrong_tries` integer DEFAULT 0 NOT NULL,
	FOREIGN KEY (`user_id`) REFERENCES `users`(`id`) ON UPDATE no action ON DELETE cascade
);
--> statement-breakpoint
CREATE TABLE `server_meta` (
	`key` text PRIMARY KEY NOT NULL,
	`value` text NOT NULL
);
--> statement-breakpoint
CREATE TABLE `synced_history` (
	`user_id` text NOT NULL,
	`id` text NOT NULL,
	`encrypted_blob` blob NOT NULL,
	`content_hash` text NOT NULL,
	`device_id` text,
	`created_at` integer NOT NULL,
	`expires_at` integer,
	`seq` integer NOT NULL,
	PRIMARY KEY(`user_id`, `id`),
	FOREIGN KEY (`user_id`) REFERENCES `users`(`id`) ON UPDATE no action ON DELETE cascade,
	FOREIGN KEY (`user_id`,`device_id`) REFERENCES `devices`(`user_id`,`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE UNIQUE INDEX `idx_synced_history_hash` ON `synced_history` (`user_id`,`content_hash`);--> statement-breakpoint
CREATE INDEX `idx_synced_history_user` ON `synced_history` (`user_id`,"created_at" DESC,"id" DESC);--> statement-breakpoint
CREATE INDEX `idx_synced_history_seq` ON `synced_history` (`user_id`,`seq`);--> statement-breakpoint
CREATE TABLE `synced_slots` (
	`user_id` text NOT NULL,
	`slot_number` integer NOT NULL,
	`encrypted_blob` blob NOT NULL,
	`updated_at` integer NOT NULL,
	`updated_by` text,
	`seq` integer NOT NULL,
	`cleared` integer DEFAULT false NOT NULL,
	PRIMARY KEY(`user_id`, `slot_number`),
	FOREIGN KEY (`user_id`) REFERENCES `users`(`id`) ON UPDATE no action ON DELETE cascade,
	FOREIGN KEY (`user_id`,`updated_by`) REFERENCES `devices`(`user_id`,`id`) ON UPDATE no action ON DELETE no action,
	CONSTRAINT "synced_slots_number" CHECK("synced_slots"."slot_number" BETWEEN 1 AND 10)
);
--> statement-breakpoint
CREATE TABLE `users` (
	`id` text PRIMARY KEY NOT NULL,
	`email` text NOT NULL,
	`password_hash` text NOT NULL,
	`created_at` integer NOT NULL,
	`seq` integer DEFAULT 0 NOT NULL,
	`oldest_cursor_seq` integer DEFAULT 0 NOT NULL,
	`token_generation` integer DEFAULT 0 NOT NULL,
	`stored_bytes` integer DEFAULT 0 NOT NULL,
	`history_items` integer DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `users_email_unique` ON `users` (`email`);