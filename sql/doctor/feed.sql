-- The state of the feed, from tickpipe's tables: one row per finding (what, well, advice, grave, seconds ago).
WITH sessions AS (
    SELECT s.*, clock_timestamp() - last_seen_at AS idle, coalesce(v.last_seq >= s.last_seq, false) AS verified,
           -- a session whose start is in the future, by a wrong clock, must not hide a later one
           row_number() OVER (PARTITION BY feed ORDER BY started_at > clock_timestamp() + interval '1 minute', session DESC) AS place
    FROM feed_sessions AS s LEFT JOIN verified_sessions AS v USING (session)
)
SELECT 'feed ' || coalesce(feed, '?') || ': ' || CASE WHEN stopped_at IS NOT NULL THEN 'stopped' ELSE 'last report' END,
       stopped_at IS NOT NULL OR idle < interval '60 seconds',
       'no final report: check that its producer and a consumer are running', idle < interval '1 day',
       extract(epoch FROM idle)::float8
FROM sessions WHERE place = 1
UNION ALL
SELECT count(*) || CASE count(*) WHEN 1 THEN ' session has' ELSE ' sessions have' END || ' ended and not been verified', count(*) = 0, 'run `tickpipe verify`', false, NULL
FROM sessions WHERE NOT verified AND (stopped_at IS NOT NULL OR idle > %(session_timeout)s * interval '1 second')
UNION ALL
SELECT count(*) || CASE count(*) WHEN 1 THEN ' dead letter' ELSE ' dead letters' END, count(*) = 0, '`tickpipe dead-letters list` shows the reasons, `tickpipe dead-letters retry` puts the entries back', false, NULL
FROM dead_letters
