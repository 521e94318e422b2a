-- The gaps of a year, faster: what ends a span is looked up once for each event, not once for each symbol, and backfill_gaps
-- compares losses with spans only. And the dead letters of a session by index: there may be a million.

CREATE INDEX dead_letters_by_session ON dead_letters (session, seq) WHERE session IS NOT NULL;

-- As in 0040.
CREATE OR REPLACE VIEW feed_coverage AS
SELECT session, symbol, least(since, until) AS since, until, ended
FROM (
    SELECT started.session,
           subscribed.symbol,
           started.at AS since,
           CASE WHEN started.event = 'refused' THEN started.at
                WHEN dropped.at IS NOT NULL THEN dropped.at
                WHEN started.ended_by = 'disconnected' AND started.ending ? 'last_frame'
                    THEN greatest(started.at,
                                  timestamptz 'epoch' + (started.ending ->> 'last_frame')::bigint * interval '1 microsecond')
                WHEN started.ended_by IS NOT NULL THEN started.ended_at
                WHEN started.last_seen_at < clock_timestamp() - report_timeout() THEN started.last_seen_at
                ELSE 'infinity'
           END AS until,
           CASE WHEN started.event = 'refused' THEN 'refused: ' || subscribed.reason
                WHEN dropped.at IS NOT NULL THEN 'unsubscribed'
                WHEN started.ended_by = 'disconnected' THEN 'disconnected: ' || coalesce(started.ending ->> 'cause', '')
                WHEN started.ended_by IS NOT NULL THEN started.ended_by
                WHEN started.last_seen_at < clock_timestamp() - report_timeout() THEN 'stopped reporting'
           END AS ended
    FROM (
        SELECT e.session, e.number, e.at, e.event, e.detail, ending.number AS ended_number, ending.event AS ended_by,
               ending.at AS ended_at, ending.detail AS ending, newest.at AS last_seen_at,
               EXISTS (SELECT FROM feed_events AS u WHERE u.session = e.session AND u.event = 'unsubscribed') AS drops
        FROM feed_events AS e
        LEFT JOIN LATERAL (
            SELECT number, event, at, detail FROM feed_events AS later
            WHERE later.session = e.session AND later.number > e.number AND later.event IN ('disconnected', 'stopped')
            ORDER BY later.number LIMIT 1
        ) AS ending ON true
        CROSS JOIN LATERAL (
            SELECT at FROM feed_events AS newest WHERE newest.session = e.session ORDER BY newest.number DESC LIMIT 1
        ) AS newest
        WHERE e.event IN ('subscribed', 'refused')
    ) AS started
    CROSS JOIN LATERAL (
        SELECT value #>> '{}' AS symbol, NULL AS reason FROM jsonb_array_elements(
            CASE WHEN started.event = 'subscribed' THEN started.detail -> 'symbols' ELSE '[]' END)
        UNION ALL
        SELECT key, value
        FROM jsonb_each_text(CASE WHEN started.event = 'refused' THEN started.detail -> 'symbols' ELSE '{}' END)
    ) AS subscribed
    LEFT JOIN LATERAL (
        SELECT at FROM feed_events AS u
        WHERE started.drops AND u.session = started.session AND u.event = 'unsubscribed' AND u.number > started.number
          AND (started.ended_number IS NULL OR u.number < started.ended_number)
          AND u.detail -> 'symbols' ? subscribed.symbol
        ORDER BY u.number LIMIT 1
    ) AS dropped ON true
) AS spans;

-- As in 0008, but a loss of any symbol is compared with the spans by itself.
CREATE OR REPLACE VIEW backfill_gaps AS
WITH losses AS MATERIALIZED (
    SELECT timestamptz 'epoch' + (detail ->> 'since')::bigint * interval '1 microsecond' AS since,
           timestamptz 'epoch' + (detail ->> 'until')::bigint * interval '1 microsecond' AS until
    FROM feed_events WHERE event = 'overflow'
)
SELECT gaps.symbol, listed.exchange, gaps.since, gaps.until
FROM (
    SELECT symbol, since, coalesce(until, clock_timestamp()) AS until FROM feed_gaps WHERE symbol IS NOT NULL
    UNION ALL
    SELECT covered.symbol, greatest(losses.since, covered.since), least(losses.until, covered.until)
    FROM losses
    JOIN feed_coverage AS covered
      ON covered.since < covered.until AND covered.since <= losses.until AND covered.until >= losses.since
) AS gaps
LEFT JOIN (
    SELECT symbol, min(exchange) AS exchange FROM instruments WHERE exchange IS NOT NULL AND mic_code IS NOT NULL
    GROUP BY symbol HAVING count(DISTINCT exchange) = 1
) AS listed USING (symbol);
