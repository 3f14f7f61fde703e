ALTER TABLE "devices" ADD COLUMN "connected_until" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
-- Notes when devices were seen, how far delivery to them is confirmed, and until when they count as connected; all only
-- ever grow. In the order of ids, so that two instances that note the same devices don't wait for each other.
CREATE OR REPLACE FUNCTION record_presence(p_presences json) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
  seen record;
BEGIN
  FOR seen IN
    SELECT account, device, from_ms(last_seen) AS last_seen, confirmed_seq, connected_until
    FROM json_to_recordset(p_presences)
      AS p (account uuid, device uuid, last_seen bigint, confirmed_seq bigint, connected_until bigint)
    ORDER BY account, device
  LOOP
    UPDATE devices SET
      last_seen = greatest(last_seen, seen.last_seen),
      confirmed_seq = greatest(confirmed_seq, seen.confirmed_seq),
      connected_until = greatest(connected_until, seen.connected_until)
    WHERE user_id = seen.account AND id = seen.device
      AND (last_seen < seen.last_seen OR confirmed_seq < seen.confirmed_seq OR connected_until < seen.connected_until);
  END LOOP;
END
$$;
