-- The state of the feed, from tickpipe's tables: one row per finding (what, well, advice, grave, seconds ago).
WITH RECURSIVE feeds AS ( -- a loose index scan: the table has a row for each session
    (SELECT feed FROM feed_states ORDER BY feed LIMIT 1)
    UNION ALL
    SELECT (SELECT s.feed FROM feed_states AS s WHERE s.feed > feeds.feed ORDER BY s.feed LIMIT 1)
    FROM feeds WHERE feeds.feed IS NOT NULL
), sessions AS (
    SELECT newest.*, clock_timestamp() - newest.last_seen_at AS idle
    FROM feeds
    CROSS JOIN LATERAL (
        (SELECT s.feed, s.stopped, s.last_seen_at FROM feed_states AS s
         -- a session whose start is in the future, by a wrong clock, must not hide a later one
         WHERE s.feed = feeds.feed AND s.session <= (extract(epoch FROM clock_timestamp() + interval '1 minute') * 1e6)::bigint
         ORDER BY s.feed DESC, s.session DESC LIMIT 1)
        UNION ALL
        (SELECT s.feed, s.stopped, s.last_seen_at FROM feed_states AS s WHERE s.feed = feeds.feed
         ORDER BY s.feed DESC, s.session DESC LIMIT 1)
        LIMIT 1
    ) AS newest
    WHERE feeds.feed IS NOT NULL
), unverified AS (
    SELECT stopped, clock_timestamp() - last_seen_at AS idle FROM feed_states WHERE NOT verified
), letters AS (
    SELECT count(*) AS found FROM (SELECT FROM dead_letters LIMIT 1000) AS rows
)
SELECT 'feed ' || coalesce(feed, '?') || ': ' || CASE WHEN stopped THEN 'stopped' ELSE 'last report' END,
       stopped OR idle < interval '60 seconds',
       'no final report: check that its producer and a consumer are running', idle < interval '1 day',
       extract(epoch FROM idle)::float8
FROM sessions
UNION ALL
SELECT count(*) || CASE count(*) WHEN 1 THEN ' session has' ELSE ' sessions have' END || ' ended and not been verified', count(*) = 0, 'run `tickpipe verify`', false, NULL
FROM unverified WHERE (stopped OR idle > %(session_timeout)s * interval '1 second')
UNION ALL
SELECT CASE found WHEN 1 THEN '1 dead letter' WHEN 1000 THEN '1000 dead letters or more' ELSE found || ' dead letters' END, found = 0, '`tickpipe dead-letters list` shows the reasons, `tickpipe dead-letters retry` puts the entries back', false, NULL
FROM letters
