-- apply_writes no longer answers with the blob of what stands.

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
-- instead of the write, without its blob: a write of a few bytes must not make us carry a megabyte.
-- A write's seq is the counter before its round plus its step, so numbers may stay unused.
--
-- Where an account may run full, whether a write is applied hangs on the sizes of those before it, and a shortened batch
-- could end otherwise than the whole: nothing is done then, and the one row returned asks for the whole ('tight').
--
-- The forms were chosen by measuring: an array of records is read three times as fast as JSON, and one text of all
-- blobs twice as fast as a string each.
CREATE OR REPLACE FUNCTION apply_writes(
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
            'createdAt', to_ms(h.created_at)
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
--> statement-breakpoint
DROP FUNCTION to_base64(bytea);
