-- A sign of life is the event `alive`, which a producer reports every 5 seconds: 6.3 million times a year. Consecutive signs
-- of life of a session become one row, so that feed_events grows with changes of the feed and not with time.

-- A merged row `alive` has the numbers from first_number to number. In all other rows first_number is NULL.
ALTER TABLE feed_events ADD COLUMN first_number bigint
    CHECK (first_number IS NULL OR event = 'alive' AND first_number BETWEEN 1 AND number);
COMMENT ON COLUMN feed_events.first_number IS 'Of consecutive signs of life, which are one row: the number of the first. NULL: one event.';

CREATE INDEX feed_events_alive ON feed_events (session, number) WHERE event = 'alive';

-- In these sessions, merge signs of life with consecutive numbers into the newest one. Its counts include the earlier ones.
-- The caller holds an advisory lock for each session, so that one transaction at a time merges it. Returns the number of
-- duplicates: signs of life that were in a merged row already, and were inserted again after a redelivery.
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
