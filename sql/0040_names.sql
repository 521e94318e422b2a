-- Plain names for columns, tables and an index, and the time after which a silent session has ended in one place.

ALTER VIEW feed_sessions RENAME COLUMN last_word_at TO last_seen_at;
ALTER TABLE candles_backfill_asked RENAME TO candles_backfill_requests;
ALTER TABLE candles_backfill_requests RENAME COLUMN asked_at TO requested_at;
ALTER INDEX feed_events_told RENAME TO feed_events_by_event;

-- A producer writes an event every 5 seconds. A session without an event for this long has ended. Python has the same
-- value: common.feed_event.REPORT_TIMEOUT.
CREATE FUNCTION report_timeout() RETURNS interval
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN interval '15 seconds';

-- As in 0020, with report_timeout().
CREATE OR REPLACE VIEW feed_coverage AS
SELECT session, symbol, least(since, until) AS since, until, ended
FROM (
    SELECT started.session,
           subscribed.symbol,
           started.at AS since,
           CASE WHEN started.event = 'refused' THEN started.at
                WHEN ending.event = 'disconnected' AND ending.detail ? 'last_frame'
                    THEN greatest(started.at,
                                  timestamptz 'epoch' + (ending.detail ->> 'last_frame')::bigint * interval '1 microsecond')
                WHEN ending.event IS NOT NULL THEN ending.at
                WHEN last_event.at < clock_timestamp() - report_timeout() THEN last_event.at
                ELSE 'infinity'
           END AS until,
           CASE WHEN started.event = 'refused' THEN 'refused: ' || subscribed.reason
                WHEN ending.event = 'disconnected' THEN 'disconnected: ' || coalesce(ending.detail ->> 'cause', '')
                WHEN ending.event IS NOT NULL THEN ending.event
                WHEN last_event.at < clock_timestamp() - report_timeout() THEN 'stopped reporting'
           END AS ended
    FROM feed_events AS started
    CROSS JOIN LATERAL (
        SELECT value #>> '{}' AS symbol, NULL AS reason FROM jsonb_array_elements(
            CASE WHEN started.event = 'subscribed' THEN started.detail -> 'symbols' ELSE '[]' END)
        UNION ALL
        SELECT key, value
        FROM jsonb_each_text(CASE WHEN started.event = 'refused' THEN started.detail -> 'symbols' ELSE '{}' END)
    ) AS subscribed
    LEFT JOIN LATERAL (
        SELECT event, at, detail FROM feed_events AS later
        WHERE later.session = started.session AND later.number > started.number
          AND (later.event IN ('disconnected', 'stopped')
               OR later.event = 'unsubscribed' AND later.detail -> 'symbols' ? subscribed.symbol)
        ORDER BY later.number LIMIT 1
    ) AS ending ON true
    CROSS JOIN LATERAL (
        SELECT at FROM feed_events AS newest WHERE newest.session = started.session ORDER BY newest.number DESC LIMIT 1
    ) AS last_event
    WHERE started.event IN ('subscribed', 'refused')
) AS spans;
