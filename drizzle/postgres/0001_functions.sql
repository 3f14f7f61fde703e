-- What drizzle-kit can't express: how the tables are stored, and the operations that take a lock and then decide by what
-- they find.
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
  round integer,      -- the round it is taken in, from 1
  step integer,       -- its place among the account's writes of that round, from 1
  passing boolean,    -- a later write of this round overwrites the slot: it is numbered and told, but not stored
  account uuid,
  device uuid,
  generation integer,
  kind text,          -- 'slot', 'push' or 'delete'
  slot integer,
  sent_at bigint,     -- the timestamp of a slot write, when it has one
  base bigint,        -- the seq of the slot it was made upon, when it says so
  id uuid,
  hash text,
  created bigint,
  expires bigint,
  first integer,      -- where its blob begins among the blobs of the batch, from 1
  length integer      -- 0: no blob; the slot is cleared
);

-- The writes of a round, each beside what stands where it wants to go, and how it fares against that. For apply_writes
-- alone, which holds the locks. A plain query, so that the planner makes it part of the statement that asks.
CREATE FUNCTION judge_writes(p_writes pending_write[], p_round integer, p_blobs bytea, p_now bigint)
RETURNS TABLE (
  place integer, step integer, passing boolean, account uuid, device uuid, kind text, slot integer,
  id uuid, hash text, created bigint, expires bigint, first integer, length integer,
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
    w.place, w.step, w.passing, w.account, w.device, w.kind, w.slot,
    w.id, w.hash, w.created, w.expires, w.first, w.length,
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
  CROSS JOIN (SELECT uuid '00000000-0000-0000-0000-000000000000' AS nobody) AS constant
  LEFT JOIN users AS u ON u.id = w.account
  LEFT JOIN devices AS d ON d.user_id = w.account AND d.id = w.device AND d.revoked_at IS NULL
  LEFT JOIN synced_slots AS slot ON w.kind = 'slot' AND slot.user_id = w.account AND slot.slot_number = w.slot
  LEFT JOIN history_tombstones AS tombstone ON w.kind <> 'slot' AND tombstone.user_id = w.account AND tombstone.id = w.id
  LEFT JOIN synced_history AS item ON w.kind <> 'slot' AND item.user_id = w.account AND item.id = w.id
  LEFT JOIN synced_history AS twin ON w.kind = 'push' AND twin.user_id = w.account AND twin.content_hash = w.hash
  CROSS JOIN LATERAL (
    SELECT CASE
      WHEN slot.seq IS NULL THEN coalesce(w.sent_at, p_now)
      -- [W4], and a write made upon the stored version: they win whatever the clocks say.
      WHEN w.sent_at IS NULL OR w.base = slot.seq THEN greatest(coalesce(w.sent_at, p_now), to_ms(slot.updated_at) + 1)
      ELSE w.sent_at
    END AS at
  ) AS effective
  WHERE w.round = p_round
$$;

-- Applies a batch of writes (Storage.applyWrites).
--
-- p_accounts: the accounts of the batch, each once.
-- p_writes, p_rounds: all of a round is judged by what stood before it. So within a round no two writes of an account
--   touch the same slot, history id or content hash, and no push comes after a delete (of an item that may have the same
--   content). The one exception: writes of one author to one slot, each greater than the one before. What stood decides
--   about each of them alike, and only the last, which is not passing, is stored.
-- p_shortened: the batch was larger: it has passing writes, or some were left out because one of its others beats them.
-- p_blobs: the blobs one behind another, as base64.
--
-- Returns a row a write, and (place NULL) a row for each history item that had to leave to stay within p_history_items.
-- seq is that of the change, or else of what stands; at the effective timestamp of a slot; stored, as JSON, what stands
-- instead of the write. Never the blob of a write that was applied: who called has it.
-- A write's seq is the counter before its round plus its step, so numbers may stay unused.
--
-- Where an account may run full, whether a write is applied hangs on the sizes of those before it, and a shortened batch
-- could end otherwise than the whole: nothing is done then, and the one row returned asks for the whole ('tight').
--
-- The forms were chosen by measuring: an array of records is read three times as fast as JSON, and one text of all
-- blobs twice as fast as a string each.
CREATE FUNCTION apply_writes(
  p_accounts uuid[],
  p_writes pending_write[],
  p_rounds integer,
  p_shortened boolean,
  p_blobs text,
  p_now bigint,
  p_history_items integer,
  p_account_bytes bigint
) RETURNS TABLE (place integer, verdict text, seq bigint, at bigint, stored json)
LANGUAGE plpgsql VOLATILE
-- One plan for every call, made of index lookups: a plan from when the tables were small must not scan them when they
-- have grown.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
  blobs CONSTANT bytea := decode(p_blobs, 'base64');
  tight boolean;
  crowded boolean;
  unaffordable integer[] := '{}';
BEGIN
  -- [W9] The counters first, in the order of ids, so that no two batches wait for each other.
  SELECT bool_or(u.stored_bytes + octet_length(blobs) > p_account_bytes),
         bool_or(u.history_items + cardinality(p_writes) > p_history_items)
  INTO tight, crowded
  FROM (
    SELECT stored_bytes, history_items FROM users WHERE id = ANY (p_accounts) ORDER BY id FOR NO KEY UPDATE
  ) AS u;
  IF tight AND p_shortened THEN
    RETURN QUERY SELECT NULL::integer, 'tight', NULL::bigint, NULL::bigint, NULL::json;
    RETURN;
  END IF;

  FOR current_round IN 1 .. p_rounds LOOP
    -- Where an account may not have room for all of it, its writes are walked one by one, in order: each has the room
    -- that those before it left.
    IF tight THEN
      WITH RECURSIVE judged AS MATERIALIZED (
        SELECT account, step, place, growth, stored_bytes
        FROM judge_writes(p_writes, current_round, blobs, p_now)
        WHERE verdict = 'applied'
      ), walk AS (
        SELECT DISTINCT account, 0 AS step, NULL::integer AS place, stored_bytes AS used, true AS fits FROM judged
        UNION ALL
        SELECT w.account, w.step, w.place, CASE WHEN room.fits THEN walk.used + w.growth ELSE walk.used END, room.fits
        FROM walk
        CROSS JOIN LATERAL (
          SELECT * FROM judged WHERE judged.account = walk.account AND judged.step > walk.step ORDER BY judged.step LIMIT 1
        ) AS w
        CROSS JOIN LATERAL (SELECT w.growth <= 0 OR walk.used + w.growth <= p_account_bytes AS fits) AS room
      )
      SELECT coalesce(array_agg(place), '{}') INTO unaffordable FROM walk WHERE NOT fits;
    END IF;

    RETURN QUERY
    WITH decided AS MATERIALIZED (
      SELECT
        place, passing, account, device, kind, slot, id, hash, created, expires, first, length,
        CASE WHEN verdict = 'applied' AND place = ANY (unaffordable) THEN 'quota_exceeded' ELSE verdict END AS verdict,
        at, growth, counter + step AS new_seq, stored_seq, stored_id
      FROM judge_writes(p_writes, current_round, blobs, p_now)
    ),
    put AS (
      INSERT INTO synced_slots AS s (user_id, slot_number, encrypted_blob, updated_at, updated_by, seq, cleared)
      SELECT account, slot, substring(blobs FROM first FOR length), from_ms(at), device, new_seq, length = 0
      FROM decided
      WHERE verdict = 'applied' AND kind = 'slot' AND NOT passing
      ON CONFLICT (user_id, slot_number) DO UPDATE SET
        encrypted_blob = excluded.encrypted_blob,
        updated_at = excluded.updated_at,
        updated_by = excluded.updated_by,
        seq = excluded.seq,
        cleared = excluded.cleared
    ),
    pushed AS (
      INSERT INTO synced_history (user_id, id, encrypted_blob, content_hash, device_id, created_at, expires_at, seq)
      SELECT account, id, substring(blobs FROM first FOR length), hash, device, from_ms(created), from_ms(expires), new_seq
      FROM decided
      WHERE verdict = 'applied' AND kind = 'push'
    ),
    deleted AS (
      DELETE FROM synced_history AS h
      USING decided AS w
      WHERE w.verdict = 'applied' AND w.kind = 'delete' AND h.user_id = w.account AND h.id = w.id
    ),
    buried AS (
      INSERT INTO history_tombstones (user_id, id, seq, deleted_at)
      SELECT account, id, new_seq, from_ms(p_now)
      FROM decided
      WHERE verdict = 'applied' AND kind = 'delete'
    ),
    counted AS (
      UPDATE users SET
        seq = total.seq,
        stored_bytes = users.stored_bytes + total.growth,
        history_items = users.history_items + total.items
      FROM (
        SELECT
          account,
          max(new_seq) AS seq,
          sum(CASE WHEN NOT passing THEN growth ELSE 0 END) AS growth,
          sum(CASE kind WHEN 'push' THEN 1 WHEN 'delete' THEN -1 ELSE 0 END) AS items
        FROM decided
        WHERE verdict = 'applied'
        GROUP BY account
      ) AS total
      WHERE users.id = total.account
    )
    SELECT
      w.place,
      w.verdict,
      CASE w.verdict WHEN 'applied' THEN w.new_seq ELSE w.stored_seq END,
      w.at,
      CASE
        WHEN w.verdict NOT IN ('stale', 'duplicate') THEN NULL
        WHEN w.kind = 'slot' THEN (
          SELECT json_build_object(
            'kind', 'slot',
            'seq', s.seq,
            'slotNumber', s.slot_number,
            'blob', CASE WHEN NOT s.cleared THEN to_base64(s.encrypted_blob) END,
            'updatedBy', s.updated_by,
            'timestamp', to_ms(s.updated_at)
          )
          FROM synced_slots AS s
          WHERE s.user_id = w.account AND s.slot_number = w.slot
        )
        WHEN w.verdict = 'duplicate' THEN (
          SELECT json_build_object(
            'kind', 'history',
            'seq', h.seq,
            'id', h.id,
            'blob', to_base64(h.encrypted_blob),
            'contentHash', h.content_hash,
            'deviceId', h.device_id,
            'createdAt', to_ms(h.created_at),
            'expiresAt', to_ms(h.expires_at)
          )
          FROM synced_history AS h
          WHERE h.user_id = w.account AND h.id = w.stored_id
        )
      END
    FROM decided AS w;
  END LOOP;

  -- The oldest items leave an account that has too many; their deletions take the next numbers.
  IF crowded THEN
    RETURN QUERY
    WITH leaving AS MATERIALIZED (
      SELECT
        u.id AS account,
        item.id,
        item.bytes,
        u.seq + row_number() OVER (PARTITION BY u.id ORDER BY item.created_at, item.id) AS new_seq
      FROM users AS u
      CROSS JOIN LATERAL (
        SELECT h.id, h.created_at, octet_length(h.encrypted_blob) AS bytes
        FROM synced_history AS h
        WHERE h.user_id = u.id
        ORDER BY h.created_at, h.id
        LIMIT u.history_items - p_history_items
      ) AS item
      WHERE u.id = ANY (p_accounts) AND u.history_items > p_history_items
    ),
    deleted AS (
      DELETE FROM synced_history AS h USING leaving AS l WHERE h.user_id = l.account AND h.id = l.id
    ),
    buried AS (
      INSERT INTO history_tombstones (user_id, id, seq, deleted_at)
      SELECT account, id, new_seq, from_ms(p_now) FROM leaving
    ),
    counted AS (
      UPDATE users SET
        seq = total.seq,
        stored_bytes = users.stored_bytes - total.bytes,
        history_items = users.history_items - total.items
      FROM (
        SELECT account, max(new_seq) AS seq, sum(bytes) AS bytes, count(*) AS items FROM leaving GROUP BY account
      ) AS total
      WHERE users.id = total.account
    )
    SELECT
      NULL::integer,
      'evicted',
      l.new_seq,
      NULL::bigint,
      json_build_object('kind', 'history_deletion', 'seq', l.new_seq, 'id', l.id, 'userId', l.account)
    FROM leaving AS l;
  END IF;
END
$$;

-- Adds a device that starts at the account's counter [R2]; at p_max_devices the longest unseen ones make room.
-- Returns their ids, or NULL when there is no such account.
CREATE FUNCTION register_device(
  p_account uuid,
  p_device uuid,
  p_name text,
  p_device_type text,
  p_created_at bigint,
  p_token_expires_at bigint,
  p_max_devices integer
) RETURNS json
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  counter bigint;
  removed json;
BEGIN
  SELECT seq INTO counter FROM users WHERE id = p_account FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  WITH live AS (
    SELECT id, row_number() OVER (ORDER BY last_seen DESC, id DESC) AS place
    FROM devices
    WHERE user_id = p_account AND revoked_at IS NULL AND token_expires_at > from_ms(p_created_at)
  ), revoked AS (
    UPDATE devices SET revoked_at = from_ms(p_created_at)
    FROM live
    WHERE live.place >= p_max_devices AND devices.user_id = p_account AND devices.id = live.id
    RETURNING devices.id, live.place
  )
  SELECT coalesce(json_agg(id ORDER BY place DESC), '[]') INTO removed FROM revoked;
  INSERT INTO devices (user_id, id, name, device_type, last_seen, created_at, token_expires_at, confirmed_seq)
  VALUES (
    p_account, p_device, p_name, p_device_type, from_ms(p_created_at), from_ms(p_created_at), from_ms(p_token_expires_at),
    counter
  );
  RETURN removed;
END
$$;

-- [R6] Sets a new password hash, ends the tokens of the old generation and every device but one.
-- Returns the new generation, or NULL when there is no such account.
CREATE FUNCTION change_password(p_account uuid, p_password_hash text, p_keep_device uuid, p_now bigint) RETURNS integer
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  generation integer;
BEGIN
  UPDATE users SET password_hash = p_password_hash, token_generation = token_generation + 1
  WHERE id = p_account
  RETURNING token_generation INTO generation;
  UPDATE devices SET revoked_at = from_ms(p_now)
  WHERE user_id = p_account AND revoked_at IS NULL AND id IS DISTINCT FROM p_keep_device;
  RETURN generation;
END
$$;

-- Takes the account's link code, once. A wrong try counts, also among many at the same time: each waits for the row.
-- Returns the sealed key, or NULL when the code is wrong, spent or past its time.
CREATE FUNCTION take_link_code(p_account uuid, p_code_digest text, p_max_wrong_tries integer, p_now bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  code link_codes;
BEGIN
  SELECT * INTO code FROM link_codes WHERE user_id = p_account FOR UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  IF code.expires_at > from_ms(p_now) AND code.code_digest = p_code_digest THEN
    DELETE FROM link_codes WHERE user_id = p_account;
    RETURN code.sealed_key;
  END IF;
  IF code.expires_at <= from_ms(p_now) OR code.wrong_tries + 1 >= p_max_wrong_tries THEN
    DELETE FROM link_codes WHERE user_id = p_account;
  ELSE
    UPDATE link_codes SET wrong_tries = wrong_tries + 1 WHERE user_id = p_account;
  END IF;
  RETURN NULL;
END
$$;

-- Creates an account and uses up its invite. Returns 'created', 'taken' (the invite stays) or 'invite_invalid'.
CREATE FUNCTION create_invited_user(
  p_account uuid,
  p_email text,
  p_password_hash text,
  p_created_at bigint,
  p_invite_digest text
) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
  PERFORM FROM invites WHERE digest = p_invite_digest AND expires_at > from_ms(p_created_at) FOR UPDATE;
  IF NOT FOUND THEN
    RETURN 'invite_invalid';
  END IF;
  INSERT INTO users (id, email, password_hash, created_at)
  VALUES (p_account, p_email, p_password_hash, from_ms(p_created_at))
  ON CONFLICT (email) DO NOTHING;
  IF NOT FOUND THEN
    RETURN 'taken';
  END IF;
  DELETE FROM invites WHERE digest = p_invite_digest;
  RETURN 'created';
END
$$;

-- Removes what is past its time for the account: at most p_limit tombstones, which moves the oldest cursor that still
-- serves, and at most p_limit expired history items, which become deletions to relay.
-- Returns the counter before, in each row, and the deleted ids in the order of their numbers, which follow it; one row
-- with a NULL id where nothing had expired; no row when there is no such account.
CREATE FUNCTION retain_account(p_account uuid, p_now bigint, p_tombstones_before bigint, p_limit integer)
RETURNS TABLE (previous_seq bigint, id uuid)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
  counter bigint;
BEGIN
  SELECT seq INTO counter FROM users WHERE users.id = p_account FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;

  WITH oldest AS (
    SELECT id, deleted_at FROM history_tombstones WHERE user_id = p_account ORDER BY seq LIMIT p_limit
  ), removed AS (
    DELETE FROM history_tombstones AS t
    USING oldest
    WHERE oldest.deleted_at < from_ms(p_tombstones_before) AND t.user_id = p_account AND t.id = oldest.id
    RETURNING t.seq
  )
  UPDATE users SET oldest_cursor_seq = greatest(oldest_cursor_seq, (SELECT max(seq) FROM removed))
  WHERE users.id = p_account AND EXISTS (SELECT FROM removed);

  RETURN QUERY
  WITH expired AS MATERIALIZED (
    SELECT id, octet_length(encrypted_blob) AS bytes, counter + row_number() OVER (ORDER BY expires_at, id) AS new_seq
    FROM synced_history
    WHERE user_id = p_account AND expires_at <= from_ms(p_now)
    ORDER BY expires_at, id
    LIMIT p_limit
  ), deleted AS (
    DELETE FROM synced_history AS h USING expired WHERE h.user_id = p_account AND h.id = expired.id
  ), buried AS (
    INSERT INTO history_tombstones (user_id, id, seq, deleted_at)
    SELECT p_account, id, new_seq, from_ms(p_now) FROM expired
  ), counted AS (
    UPDATE users SET
      seq = total.seq,
      stored_bytes = users.stored_bytes - total.bytes,
      history_items = users.history_items - total.items
    FROM (SELECT max(new_seq) AS seq, sum(bytes) AS bytes, count(*) AS items FROM expired) AS total
    WHERE users.id = p_account AND total.items > 0
  )
  SELECT counter, expired.id FROM (VALUES (true)) AS always LEFT JOIN expired ON true ORDER BY expired.new_seq;
END
$$;

-- Notes when devices were seen and how far delivery to them is confirmed; both only ever grow. In the order of ids, so
-- that two instances that note the same devices don't wait for each other.
CREATE FUNCTION record_presence(p_presences json) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  seen record;
BEGIN
  FOR seen IN
    SELECT account, device, from_ms(last_seen) AS last_seen, confirmed_seq
    FROM json_to_recordset(p_presences) AS p (account uuid, device uuid, last_seen bigint, confirmed_seq bigint)
    ORDER BY account, device
  LOOP
    UPDATE devices SET
      last_seen = greatest(last_seen, seen.last_seen),
      confirmed_seq = greatest(confirmed_seq, seen.confirmed_seq)
    WHERE user_id = seen.account AND id = seen.device
      AND (last_seen < seen.last_seen OR confirmed_seq < seen.confirmed_seq);
  END LOOP;
END
$$;
