CREATE TABLE "devices" (
	"user_id" uuid NOT NULL,
	"id" uuid NOT NULL,
	"name" text NOT NULL,
	"device_type" text NOT NULL,
	"last_seen" timestamptz(3) NOT NULL,
	"created_at" timestamptz(3) NOT NULL,
	"revoked_at" timestamptz(3),
	"token_expires_at" timestamptz(3) NOT NULL,
	"confirmed_seq" bigint NOT NULL,
	CONSTRAINT "devices_user_id_id_pk" PRIMARY KEY("user_id","id")
);
--> statement-breakpoint
CREATE TABLE "history_tombstones" (
	"user_id" uuid NOT NULL,
	"id" uuid NOT NULL,
	"seq" bigint NOT NULL,
	"deleted_at" timestamptz(3) NOT NULL,
	CONSTRAINT "history_tombstones_user_id_id_pk" PRIMARY KEY("user_id","id")
);
--> statement-breakpoint
CREATE TABLE "invites" (
	"digest" text PRIMARY KEY NOT NULL,
	"created_at" timestamptz(3) NOT NULL,
	"expires_at" timestamptz(3) NOT NULL
);
--> statement-breakpoint
CREATE TABLE "link_codes" (
	"user_id" uuid PRIMARY KEY NOT NULL,
	"code_digest" text NOT NULL,
	"sealed_key" text NOT NULL,
	"expires_at" timestamptz(3) NOT NULL,
	"wrong_tries" integer DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE TABLE "server_meta" (
	"key" text PRIMARY KEY NOT NULL,
	"value" text NOT NULL
);
--> statement-breakpoint
CREATE TABLE "synced_history" (
	"user_id" uuid NOT NULL,
	"id" uuid NOT NULL,
	"encrypted_blob" "bytea" NOT NULL,
	"content_hash" text NOT NULL,
	"device_id" uuid,
	"created_at" timestamptz(3) NOT NULL,
	"expires_at" timestamptz(3),
	"seq" bigint NOT NULL,
	CONSTRAINT "synced_history_user_id_id_pk" PRIMARY KEY("user_id","id")
);
--> statement-breakpoint
CREATE TABLE "synced_slots" (
	"user_id" uuid NOT NULL,
	"slot_number" integer NOT NULL,
	"encrypted_blob" "bytea" NOT NULL,
	"updated_at" timestamptz(3) NOT NULL,
	"updated_by" uuid,
	"seq" bigint NOT NULL,
	"cleared" boolean DEFAULT false NOT NULL,
	CONSTRAINT "synced_slots_user_id_slot_number_pk" PRIMARY KEY("user_id","slot_number"),
	CONSTRAINT "synced_slots_number" CHECK ("synced_slots"."slot_number" BETWEEN 1 AND 10)
);
--> statement-breakpoint
CREATE TABLE "users" (
	"id" uuid PRIMARY KEY NOT NULL,
	"email" text NOT NULL,
	"password_hash" text NOT NULL,
	"created_at" timestamptz(3) NOT NULL,
	"seq" bigint DEFAULT 0 NOT NULL,
	"oldest_cursor_seq" bigint DEFAULT 0 NOT NULL,
	"token_generation" integer DEFAULT 0 NOT NULL,
	"stored_bytes" bigint DEFAULT 0 NOT NULL,
	"history_items" integer DEFAULT 0 NOT NULL,
	CONSTRAINT "users_email_unique" UNIQUE("email")
);
--> statement-breakpoint
ALTER TABLE "devices" ADD CONSTRAINT "devices_user_id_users_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."users"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "history_tombstones" ADD CONSTRAINT "history_tombstones_user_id_users_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."users"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "link_codes" ADD CONSTRAINT "link_codes_user_id_users_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."users"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "synced_history" ADD CONSTRAINT "synced_history_user_id_users_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."users"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "synced_history" ADD CONSTRAINT "synced_history_device_fk" FOREIGN KEY ("user_id","device_id") REFERENCES "public"."devices"("user_id","id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "synced_slots" ADD CONSTRAINT "synced_slots_user_id_users_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."users"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "synced_slots" ADD CONSTRAINT "synced_slots_device_fk" FOREIGN KEY ("user_id","updated_by") REFERENCES "public"."devices"("user_id","id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "idx_history_tombstones_seq" ON "history_tombstones" USING btree ("user_id","seq");--> statement-breakpoint
CREATE UNIQUE INDEX "idx_synced_history_hash" ON "synced_history" USING btree ("user_id","content_hash");--> statement-breakpoint
CREATE INDEX "idx_synced_history_user" ON "synced_history" USING btree ("user_id","created_at" DESC NULLS FIRST,"id" DESC NULLS FIRST);--> statement-breakpoint
CREATE INDEX "idx_synced_history_seq" ON "synced_history" USING btree ("user_id","seq");