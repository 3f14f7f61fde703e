CREATE INDEX "idx_synced_history_expires" ON "synced_history" USING btree ("user_id","expires_at") WHERE "synced_history"."expires_at" IS NOT NULL;--> statement-breakpoint
-- Removes what is past its time for the account: at most p_limit tombstones, those too old and those that are more than
-- the newest p_tombstones, which moves the oldest cursor that still serves; and at most p_limit expired history items,
-- which become deletions to relay.
-- Returns the counter before, in each row, and the deleted ids in the order of their numbers, which follow it; one row
-- with a NULL id where nothing had expired; no row when there is no such account. more: a next call may find more.
-- Beside the function of four parameters, which servers of the version before call.
--
-- Rows are removed by arrays of their keys: a join that was planned when the table was small goes through all of it for
-- each row once it has grown (10 s for 500 of 90,000).
CREATE FUNCTION retain_account(
  p_account uuid,
  p_now bigint,
  p_tombstones_before bigint,
  p_tombstones integer,
  p_limit integer
) RETURNS TABLE (previous_seq bigint, id uuid, more boolean)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
  counter bigint;
  beyond bigint; -- tombstones up to this seq are too many
  leaving bigint[];
BEGIN
  SELECT seq INTO counter FROM users WHERE users.id = p_account FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;

  SELECT seq INTO beyond FROM history_tombstones WHERE user_id = p_account ORDER BY seq DESC OFFSET p_tombstones LIMIT 1;
  SELECT coalesce(array_agg(seq ORDER BY seq), '{}') INTO leaving
  FROM (
    SELECT seq, deleted_at FROM history_tombstones WHERE user_id = p_account ORDER BY seq LIMIT p_limit
  ) AS oldest
  WHERE deleted_at < from_ms(p_tombstones_before) OR seq <= beyond;
  IF cardinality(leaving) > 0 THEN
    DELETE FROM history_tombstones WHERE user_id = p_account AND seq = ANY (leaving);
    UPDATE users SET oldest_cursor_seq = greatest(oldest_cursor_seq, leaving[cardinality(leaving)])
    WHERE users.id = p_account;
  END IF;

  RETURN QUERY
  WITH expired AS MATERIALIZED (
    SELECT id, octet_length(encrypted_blob) AS bytes, counter + row_number() OVER (ORDER BY expires_at, id) AS new_seq
    FROM synced_history
    WHERE user_id = p_account AND expires_at <= from_ms(p_now)
    ORDER BY expires_at, id
    LIMIT p_limit
  ), deleted AS (
    DELETE FROM synced_history AS h WHERE h.user_id = p_account AND h.id = ANY (ARRAY(SELECT id FROM expired))
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
  SELECT counter, expired.id, cardinality(leaving) >= p_limit OR (SELECT count(*) FROM expired) >= p_limit
  FROM (VALUES (true)) AS always LEFT JOIN expired ON true
  ORDER BY expired.new_seq;
END
$$;
