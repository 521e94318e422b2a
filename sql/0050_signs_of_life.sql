-- Consecutive signs of life of a session become one row, so that feed_events grows with changes and not with time. (A
-- producer reports every 5 seconds: 6.3 million times a year.)

-- A row `alive` stands for the numbers from first_number to number. In all other rows first_number is NULL.
ALTER TABLE feed_events ADD COLUMN first_number bigint
    CHECK (first_number IS NULL OR event = 'alive' AND first_number BETWEEN 1 AND number);
COMMENT ON COLUMN feed_events.first_number IS 'Of consecutive signs of life, which are one row: the number of the first. NULL: one event.';

CREATE INDEX feed_events_alive ON feed_events (session, number) WHERE event = 'alive';

-- Merge the signs of life of these sessions whose numbers follow each other into the newest one: it counts all prices and
-- times before it. The caller holds an advisory lock for each session: one transaction at a time merges it. Returns how many
-- of them a merged row had before: they were inserted again, because their own rows are gone.
CREATE FUNCTION merge_signs_of_life(sessions bigint[]) RETURNS bigint
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    WITH numbered AS (
        SELECT session, number, coalesce(first_number, number) AS first_number,
               coalesce(first_number, number) > 1 + max(number) OVER (
                   PARTITION BY session ORDER BY coalesce(first_number, number), number
                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS begins
        FROM feed_events WHERE session = ANY (sessions) AND event = 'alive'
    ), runs AS (
        SELECT session, number, first_number,
               count(*) FILTER (WHERE begins) OVER (PARTITION BY session ORDER BY first_number, number) AS run
        FROM numbered
    ), merged AS (
        SELECT session, min(first_number) AS first_number, max(number) AS number,
               sum(number - first_number + 1) - (max(number) - min(first_number) + 1) AS repeated
        FROM runs GROUP BY session, run HAVING count(*) > 1
    ), updated AS (
        UPDATE feed_events AS e SET first_number = m.first_number FROM merged AS m
        WHERE e.session = m.session AND e.number = m.number
        RETURNING e.session, e.number, e.first_number
    ), deleted AS (
        DELETE FROM feed_events AS e USING updated AS u
        WHERE e.session = u.session AND e.event = 'alive' AND e.number >= u.first_number AND e.number < u.number
    )
    SELECT coalesce(sum(repeated), 0)::bigint FROM merged;
END;
COMMENT ON FUNCTION merge_signs_of_life IS 'Makes one row of consecutive signs of life of these sessions. Returns how many were stored before.';

SELECT merge_signs_of_life(array_agg(DISTINCT session)) FROM feed_events;

-- As in 0003 and 0040, but `events` counts each sign of life.
CREATE OR REPLACE VIEW feed_sessions AS
SELECT session,
       max(detail ->> 'feed') FILTER (WHERE event = 'started')                                  AS feed,
       max((detail ->> 'continues')::bigint) FILTER (WHERE event = 'started')                   AS continues,
       to_timestamp(session / 1e6)                                                              AS started_at,
       max(at) FILTER (WHERE event = 'stopped')                                                 AS stopped_at,
       max(at)                                                                                  AS last_seen_at,
       coalesce(max((detail ->> 'last_seq')::bigint) FILTER (WHERE event IN ('alive', 'stopped')), 0) AS last_seq,
       min((detail ->> 'time_min')::float8) FILTER (WHERE event IN ('alive', 'stopped'))        AS time_min,
       max((detail ->> 'time_max')::float8) FILTER (WHERE event IN ('alive', 'stopped'))        AS time_max,
       count(*) FILTER (WHERE event = 'connected')                                              AS connections,
       (sum(number - coalesce(first_number, number) + 1))::bigint                               AS events,
       max(number)                                                                              AS last_number
FROM feed_events
GROUP BY session;

-- The newest event and the newest report of each session, by a few index lookups each. (feed_sessions reads all events.)
CREATE VIEW feed_newest AS
WITH RECURSIVE sessions AS (
    (SELECT session FROM feed_events ORDER BY session DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT e.session FROM feed_events AS e WHERE e.session < s.session ORDER BY e.session DESC LIMIT 1)
    FROM sessions AS s WHERE s.session IS NOT NULL
)
SELECT s.session, newest.at AS last_seen_at, newest.event = 'stopped' AS stopped, coalesce(reported.last_seq, 0) AS last_seq
FROM sessions AS s
CROSS JOIN LATERAL (
    SELECT at, event FROM feed_events AS e WHERE e.session = s.session ORDER BY number DESC LIMIT 1
) AS newest
LEFT JOIN LATERAL (
    SELECT (detail ->> 'last_seq')::bigint AS last_seq FROM feed_events AS e
    WHERE e.session = s.session AND event IN ('alive', 'stopped') ORDER BY number DESC LIMIT 1
) AS reported ON true
WHERE s.session IS NOT NULL;
COMMENT ON VIEW feed_newest IS 'For each session: when it was last seen, and the last number that it reported.';

-- As in 0009, but the number a day ago is estimated: between two reports, prices count as evenly spread.
CREATE OR REPLACE VIEW ticks_growth AS
WITH reported AS (
    SELECT to_timestamp(s.session / 1e6) AS began, s.last_seq AS seq,
           coalesce(before.seq + (after.seq - before.seq) * extract(epoch FROM clock_timestamp() - interval '1 day' - before.at)
                        / nullif(extract(epoch FROM after.at - before.at), 0),
                    before.seq, 0)::bigint AS yesterday
    FROM feed_newest AS s
    CROSS JOIN LATERAL (
        SELECT s.session > extract(epoch FROM clock_timestamp() - interval '2 days') * 1e6 AS recent
    ) AS start
    LEFT JOIN LATERAL (
        SELECT seq, at FROM (
            (SELECT (detail ->> 'last_seq')::bigint AS seq, at FROM feed_events AS e
             WHERE e.session = s.session AND event IN ('alive', 'stopped') AND at <= clock_timestamp() - interval '1 day'
             ORDER BY number DESC LIMIT 1)
            UNION ALL
            SELECT 0, to_timestamp(s.session / 1e6) WHERE s.session < extract(epoch FROM clock_timestamp() - interval '1 day') * 1e6
        ) AS either ORDER BY at DESC LIMIT 1
    ) AS before ON recent
    LEFT JOIN LATERAL (
        SELECT (detail ->> 'last_seq')::bigint AS seq, at FROM feed_events AS e
        WHERE e.session = s.session AND event IN ('alive', 'stopped') AND at > clock_timestamp() - interval '1 day'
        ORDER BY number LIMIT 1
    ) AS after ON recent
), facts AS (
    SELECT ticks_size() AS bytes,
           greatest(coalesce(sum(seq), 0)
               - (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM feed_expired), 0)::bigint AS rows,
           coalesce(sum(seq - yesterday) FILTER (WHERE began > clock_timestamp() - interval '2 days'), 0)::bigint AS added,
           (SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM feed_expired
            WHERE at > clock_timestamp() - interval '1 day') AS dropped,
           coalesce(extract(epoch FROM least(clock_timestamp() - min(began), interval '1 day')), 0)::float8 AS seconds
    FROM reported
)
SELECT bytes, rows, added, dropped, seconds, rows_per_day, rows_per_day * bytes / nullif(rows, 0) AS bytes_per_day
FROM facts
CROSS JOIN LATERAL (
    SELECT CASE WHEN seconds >= 60 THEN added * 86400 / seconds - dropped END AS rows_per_day
) AS growth;
