-- Size and growth of the ticks, for `tickpipe status` and `doctor`. No query scans the ticks.

-- Bytes of the ticks with index and all chunks. (It decides at each call, because a table may become a hypertable later. The
-- search path is fixed.)
CREATE FUNCTION ticks_size() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    size bigint;
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
        size := hypertable_size('prices_real_time'); -- NULL for a regular table
    END IF;
    RETURN coalesce(size, pg_total_relation_size('prices_real_time'));
END
$$;

-- One row. rows: an estimate from the sequence numbers that producers report, less the rows that retention has deleted.
-- added, dropped: rows of the last day. seconds: how much of that day the feed was recorded. rows_per_day and bytes_per_day
-- are extrapolated, and NULL if less than a minute was recorded. bytes_per_day uses today's bytes per row; rows in the
-- columnstore (0002) are smaller. The query takes a few index lookups for each session. (A session lasts a day at most, so
-- only sessions of the last two days need a lookup of their number a day ago.)
CREATE VIEW ticks_growth AS
WITH RECURSIVE sessions AS (
    (SELECT session FROM feed_events ORDER BY session DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT e.session FROM feed_events AS e WHERE e.session < s.session ORDER BY e.session DESC LIMIT 1)
    FROM sessions AS s WHERE s.session IS NOT NULL
), told AS (
    SELECT to_timestamp(s.session / 1e6) AS began, coalesce(newest.seq, 0) AS seq, coalesce(yesterday.seq, 0) AS yesterday
    FROM sessions AS s
    LEFT JOIN LATERAL (
        SELECT (detail ->> 'last_seq')::bigint AS seq FROM feed_events AS e
        WHERE e.session = s.session AND event IN ('alive', 'stopped') ORDER BY number DESC LIMIT 1
    ) AS newest ON true
    LEFT JOIN LATERAL (
        SELECT (detail ->> 'last_seq')::bigint AS seq FROM feed_events AS e
        WHERE e.session = s.session AND event IN ('alive', 'stopped') AND at <= clock_timestamp() - interval '1 day'
        ORDER BY number DESC LIMIT 1
    ) AS yesterday ON s.session > extract(epoch FROM clock_timestamp() - interval '2 days') * 1e6
    WHERE s.session IS NOT NULL
), facts AS (
    SELECT ticks_size() AS bytes,
           greatest(coalesce(sum(seq), 0)
               - (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM feed_expired), 0)::bigint AS rows,
           coalesce(sum(seq - yesterday) FILTER (WHERE began > clock_timestamp() - interval '2 days'), 0)::bigint AS added,
           (SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM feed_expired
            WHERE at > clock_timestamp() - interval '1 day') AS dropped,
           coalesce(extract(epoch FROM least(clock_timestamp() - min(began), interval '1 day')), 0)::float8 AS seconds
    FROM told
)
SELECT bytes, rows, added, dropped, seconds, rows_per_day, rows_per_day * bytes / nullif(rows, 0) AS bytes_per_day
FROM facts
CROSS JOIN LATERAL (
    SELECT CASE WHEN seconds >= 60 THEN added * 86400 / seconds - dropped END AS rows_per_day
) AS growth;
COMMENT ON VIEW ticks_growth IS 'Size of the ticks in bytes and rows, and their growth in the last day.';
