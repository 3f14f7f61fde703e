-- What drizzle-kit can't express: how the tables are stored, keys that wait for the commit, and the operations that
-- take a lock and then decide by what they find.
--
-- Each operation is one statement for the client, so that no connection is ever inside a transaction of several round
-- trips. Those that first lock and then look are PL/pgSQL functions and not WITH queries, and this is why: a WITH query
-- sees one snapshot, taken before it waits for a lock, and would decide by rows that the one it waited for has just
-- changed. In a VOLATILE function each statement takes a new snapshot (PostgreSQL manual, "Transaction Isolation", Read
-- Committed), so what follows the lock sees all that was committed while we waited.
--
-- The lock of an account is its row in users. Whoever changes an account's slots, history, devices or tokens takes it
-- first; who takes several takes them in the order of their ids.

-- Blobs are ciphertext: compressing them costs time and gains nothing. Some space is left in each page, so that a new
-- version of a row fits beside the old one and no index has to change.
ALTER TABLE synced_slots ALTER COLUMN encrypted_blob SET STORAGE EXTERNAL, SET (fillfactor = 60);
ALTER TABLE synced_history ALTER COLUMN encrypted_blob SET STORAGE EXTERNAL;
ALTER TABLE users SET (fillfactor = 80);
ALTER TABLE devices SET (fillfactor = 80);

-- Checked at the commit, so that an account can be deleted with all that hangs on it, in whatever order that goes.
ALTER TABLE synced_slots ALTER CONSTRAINT synced_slots_device_fk DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE synced_history ALTER CONSTRAINT synced_history_device_fk DEFERRABLE INITIALLY DEFERRED;

-- Times are milliseconds since 1970 for the server.
CREATE FUNCTION to_ms(t timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN (extract(epoch FROM t) * 1000)::bigint;

CREATE FUNCTION from_ms(ms bigint) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
RETURN timestamptz 'epoch' + ms * interval '1 millisecond';

-- The text of a blob as the server keeps it: encode() breaks lines.
CREATE FUNCTION to_base64(bytes bytea) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN translate(encode(bytes, 'base64'), E'\n', '');

-- A write of a batch (see apply_writes).
CREATE TYPE pending_write AS (
  place integer,      -- its place in the batch
  round integer,      -- the round it is taken in
  step integer,       -- its place among the account's writes of that round, from 1
  account uuid,
  device uuid,
  generation integer,
  kind text,          -- 'slot', 'push' or 'delete'
  slot integer,
  at bigint,          -- the timestamp of a slot, when it has one
  base bigint,        -- the seq of the slot it was made upon, when it says so
  id uuid,
  hash text,
  created bigint,
  expires bigint,
  first integer,      -- where its blob begins among the blobs of the batch, from 1
  length integer      -- 0: no blob; the slot is cleared
);

-- How each write fares against what stands where it wants to go. Called by apply_writes alone, which holds the locks;
-- a plain query, so that the planner makes it part of the calling statement.
CREATE FUNCTION judge_writes(p_writes pending_write[], p_blobs bytea, p_now bigint)
RETURNS TABLE (
  write pending_write,
  verdict text,
  at bigint,          -- the effective timestamp of a slot
  growth integer,     -- of the account's bytes, should the write be applied
  counter bigint,     -- of the account, before this round
  stored_bytes bigint,
  stored_seq bigint,  -- of what stands
  stored_id uuid      -- of the history item that stands
)
LANGUAGE sql STABLE
AS $$
  SELECT
    w,
    CASE
      -- [R6]
      WHEN u.id IS NULL OR w.generation < u.token_generation OR (w.device IS NOT NULL AND d.id IS NULL) THEN 'revoked'
      WHEN w.kind = 'slot' THEN CASE
        -- [W2] The greater of (timestamp, device, SHA-256) wins; it seldom comes to the hashes.
        WHEN slot.seq IS NULL OR effective.at > to_ms(slot.updated_at) THEN 'applied'
        WHEN effective.at < to_ms(slot.updated_at) THEN 'stale'
        WHEN (coalesce(w.device, nobody), sha256(substring(p_blobs FROM w.first FOR w.length)))
           > (coalesce(slot.updated_by, nobody), sha256(slot.encrypted_blob)) THEN 'applied'
        WHEN (coalesce(w.device, nobody), sha256(substring(p_blobs FROM w.first FOR w.length)))
           < (coalesce(slot.updated_by, nobody), sha256(slot.encrypted_blob)) THEN 'stale'
        ELSE 'duplicate'
      END
      WHEN w.kind = 'push' THEN CASE
        WHEN tombstone.seq IS NOT NULL THEN 'stale' -- [W8]
        WHEN item.seq IS NOT NULL OR twin.seq IS NOT NULL THEN 'duplicate' -- [W7]
        ELSE 'applied'
      END
      WHEN item.seq IS NOT NULL THEN 'applied'
      WHEN tombstone.seq IS NOT NULL THEN 'duplicate'
      ELSE 'not_found'
    END,
    effective.at,
    CASE w.kind
      WHEN 'slot' THEN w.length - coalesce(octet_length(slot.encrypted_blob), 0)
      WHEN 'push' THEN w.length
      ELSE -octet_length(item.encrypted_blob)
    END,
    u.seq,
    u.stored_bytes,
    coalesce(slot.seq, tombstone.seq, item.seq, twin.seq),
    coalesce(item.id, twin.id)
  FROM unnest(p_writes) AS w
  CROSS JOIN (SELECT uuid '00000000-0000-0000-0000-000000000000' AS nobody) AS constants
  LEFT JOIN users AS u ON u.id = w.account
  LEFT JOIN devices AS d ON d.user_id = w.account AND d.id = w.device AND d.revoked_at IS NULL
  LEFT JOIN synced_slots AS slot ON w.kind = 'slot' AND slot.user_id = w.account AND slot.slot_number = w.slot
  LEFT JOIN history_tombstones AS tombstone ON w.kind <> 'slot' AND tombstone.user_id = w.account AND tombstone.id = w.id
  LEFT JOIN synced_history AS item ON w.kind <> 'slot' AND item.user_id = w.account AND item.id = w.id
  LEFT JOIN synced_history AS twin ON w.kind = 'push' AND twin.user_id = w.account AND twin.content_hash = w.hash
  CROSS JOIN LATERAL (
    SELECT CASE
      WHEN slot.seq IS NULL THEN coalesce(w.at, p_now)
      -- [W4], and a write made upon the stored version: they win whatever the clocks say.
      WHEN w.at IS NULL OR w.base = slot.seq THEN greatest(coalesce(w.at, p_now), to_ms(slot.updated_at) + 1)
      ELSE w.at
    END AS at
  ) AS effective
$$;
