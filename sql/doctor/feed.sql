-- Findings of `tickpipe doctor` on the feed, from our tables.
WITH sessions AS (
    SELECT s.*, clock_timestamp() - last_seen_at AS silent, coalesce(v.last_seq >= s.last_seq, false) AS verified,
           -- a session from a clock that was ahead does not hide a later session
           row_number() OVER (PARTITION BY feed ORDER BY started_at > clock_timestamp() + interval '1 minute', session DESC) AS place
    FROM feed_sessions AS s LEFT JOIN verified_sessions AS v USING (session)
)
SELECT 'feed ' || coalesce(feed, '?') || ': ' || CASE WHEN stopped_at IS NOT NULL THEN 'stopped' ELSE 'last word' END,
       stopped_at IS NOT NULL OR silent < interval '60 seconds',
       'it never said goodbye: is its producer running, and does a consumer read?', silent < interval '1 day',
       extract(epoch FROM silent)::float8 -- its age in seconds
FROM sessions WHERE place = 1
UNION ALL
SELECT count(*) || ' sessions have ended and are not proven complete', count(*) = 0, 'run `tickpipe verify`', false, NULL
FROM sessions WHERE NOT verified AND (stopped_at IS NOT NULL OR silent > report_timeout())
UNION ALL
SELECT count(*) || ' dead letters', count(*) = 0, '`tickpipe dead-letters list` says why, `tickpipe dead-letters retry` puts them back', false, NULL
FROM dead_letters
