-- The exchange's time may be wrong, and a clock may be set back. Such rows are stored, but a tick from the year 2099 must
-- not be the newest tick until then.

-- The newest ticks of a symbol by the exchange's time, the newest first. A tick is ahead of its time if its time is more than
-- a minute after it was received: such ticks come after all others. Two short index scans, of which the second rarely finds
-- a row: times up to now, and times ahead of now, in case the clock of this server is slow.
CREATE FUNCTION latest_ticks(symbol text, most bigint, since timestamptz DEFAULT '-infinity')
RETURNS TABLE ("time" timestamptz, price float8, bid float8, ask float8, exchange text, received_at timestamptz,
               session bigint, seq bigint)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT t.time, t.price, t.bid, t.ask, t.exchange, t.received_at, t.session, t.seq
    FROM (
        (SELECT p.time, p.price, p.bid, p.ask, p.exchange, p.received_at, p.session, p.seq FROM prices_real_time AS p
         WHERE p.symbol = latest_ticks.symbol AND p.time >= latest_ticks.since AND p.time <= now() + interval '1 minute'
         ORDER BY p.time DESC, p.session DESC, p.seq DESC LIMIT latest_ticks.most + 10)
        UNION ALL
        (SELECT p.time, p.price, p.bid, p.ask, p.exchange, p.received_at, p.session, p.seq FROM prices_real_time AS p
         WHERE p.symbol = latest_ticks.symbol AND p.time >= latest_ticks.since AND p.time > now() + interval '1 minute'
         ORDER BY p.time DESC, p.session DESC, p.seq DESC LIMIT latest_ticks.most + 10)
    ) AS t
    ORDER BY t.time > t.received_at + interval '1 minute', t.time DESC, t.session DESC, t.seq DESC
    LIMIT latest_ticks.most;
END;
COMMENT ON FUNCTION latest_ticks IS 'The newest ticks of a symbol; those whose time is ahead of when they were received come last.';

-- As in 0003, but for last_seen: a tick that is ahead of its time does not hide what was received after it.
CREATE OR REPLACE VIEW instruments AS
SELECT told.symbol, detail ->> 'type' AS type, detail ->> 'exchange' AS exchange, detail ->> 'mic_code' AS mic_code,
       detail ->> 'currency' AS currency, detail ->> 'currency_base' AS currency_base,
       detail ->> 'currency_quote' AS currency_quote, first_seen,
       greatest(last_told, newest.received_at, ahead.received_at) AS last_seen
FROM (
    SELECT detail ->> 'symbol' AS symbol, coalesce(detail ->> 'exchange', '') AS exchange, min(at) AS first_seen,
           max(at) AS last_told, (array_agg(detail ORDER BY at DESC))[1] AS detail
    FROM feed_events WHERE event = 'instrument' GROUP BY 1, 2
) AS told
LEFT JOIN LATERAL (
    SELECT received_at FROM prices_real_time AS p
    WHERE p.symbol = told.symbol AND coalesce(p.exchange, '') = told.exchange AND p.time <= now() + interval '1 minute'
    ORDER BY p.time DESC, p.session DESC, p.seq DESC LIMIT 1
) AS newest ON true
LEFT JOIN LATERAL (
    SELECT received_at FROM prices_real_time AS p
    WHERE p.symbol = told.symbol AND coalesce(p.exchange, '') = told.exchange AND p.time > now() + interval '1 minute'
    ORDER BY p.time DESC, p.session DESC, p.seq DESC LIMIT 1
) AS ahead ON true;

-- As in 0003, but for since: if the clock went back, a span that began by the clock of before has no length. (It would
-- begin after its end.)
CREATE OR REPLACE VIEW feed_coverage AS
SELECT session, symbol, least(since, until) AS since, until, ended
FROM (
    SELECT told.session,
           subscribed.symbol,
           told.at AS since,
           CASE WHEN told.event = 'refused' THEN told.at
                WHEN ending.event = 'disconnected' AND ending.detail ? 'last_frame'
                    THEN greatest(told.at, timestamptz 'epoch' + (ending.detail ->> 'last_frame')::bigint * interval '1 microsecond')
                WHEN ending.event IS NOT NULL THEN ending.at
                WHEN last_word.at < clock_timestamp() - interval '15 seconds' THEN last_word.at
                ELSE 'infinity'
           END AS until,
           CASE WHEN told.event = 'refused' THEN 'refused: ' || subscribed.reason
                WHEN ending.event = 'disconnected' THEN 'disconnected: ' || coalesce(ending.detail ->> 'cause', '')
                WHEN ending.event IS NOT NULL THEN ending.event
                WHEN last_word.at < clock_timestamp() - interval '15 seconds' THEN 'ended without word'
           END AS ended
    FROM feed_events AS told
    CROSS JOIN LATERAL (
        SELECT value #>> '{}' AS symbol, NULL AS reason FROM jsonb_array_elements(
            CASE WHEN told.event = 'subscribed' THEN told.detail -> 'symbols' ELSE '[]' END)
        UNION ALL
        SELECT key, value FROM jsonb_each_text(CASE WHEN told.event = 'refused' THEN told.detail -> 'symbols' ELSE '{}' END)
    ) AS subscribed
    LEFT JOIN LATERAL (
        SELECT event, at, detail FROM feed_events AS later
        WHERE later.session = told.session AND later.number > told.number
          AND (later.event IN ('disconnected', 'stopped')
               OR later.event = 'unsubscribed' AND later.detail -> 'symbols' ? subscribed.symbol)
        ORDER BY later.number LIMIT 1
    ) AS ending ON true
    CROSS JOIN LATERAL (
        SELECT at FROM feed_events AS word WHERE word.session = told.session ORDER BY word.number DESC LIMIT 1
    ) AS last_word
    WHERE told.event IN ('subscribed', 'refused')
) AS spans;
