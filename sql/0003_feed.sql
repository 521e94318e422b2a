-- Views of the feed events: when each session ran, and when and why prices could not be received.

-- All events but `alive`, which a producer writes every 5 seconds.
CREATE INDEX feed_events_told ON feed_events (event, session, number) WHERE event <> 'alive';

-- One row for each session. last_seq is the last sequence number that the producer has reported. time_min and time_max
-- are the exchange's times of the prices up to that number.
CREATE VIEW feed_sessions AS
SELECT session,
       max(detail ->> 'feed') FILTER (WHERE event = 'started')                                  AS feed,
       max((detail ->> 'continues')::bigint) FILTER (WHERE event = 'started')                   AS continues,
       to_timestamp(session / 1e6)                                                              AS started_at,
       max(at) FILTER (WHERE event = 'stopped')                                                 AS stopped_at,
       max(at)                                                                                  AS last_word_at,
       coalesce(max((detail ->> 'last_seq')::bigint) FILTER (WHERE event IN ('alive', 'stopped')), 0) AS last_seq,
       min((detail ->> 'time_min')::float8) FILTER (WHERE event IN ('alive', 'stopped'))        AS time_min,
       max((detail ->> 'time_max')::float8) FILTER (WHERE event IN ('alive', 'stopped'))        AS time_max,
       count(*) FILTER (WHERE event = 'connected')                                              AS connections,
       count(*)                                                                                 AS events,
       max(number)                                                                              AS last_number
FROM feed_events
GROUP BY session;

-- Spans in which each symbol was subscribed on an open connection. A span ends at the last frame before the connection was
-- lost. In a session without a stopped event it ends at the last event, after 15 seconds without a new one. An open span has
-- until = infinity. A refusal is a span of length 0.
CREATE VIEW feed_coverage AS
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
WHERE told.event IN ('subscribed', 'refused');

-- Gaps: one row for each outage and symbol, with start, end and cause. symbol is NULL if prices of any symbol were lost
-- (feed_events has their numbers). until is NULL while the gap is open.
CREATE VIEW feed_gaps AS
WITH ends AS NOT MATERIALIZED ( -- blind_since: the latest end of all earlier spans
    SELECT symbol, since, until, ended,
           max(until) OVER (PARTITION BY symbol ORDER BY since, until
                            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS blind_since
    FROM feed_coverage
), causes AS NOT MATERIALIZED (
    SELECT symbol, until, min(ended) AS cause FROM ends GROUP BY symbol, until
), last AS (
    SELECT DISTINCT ON (symbol) symbol, until, ended FROM feed_coverage ORDER BY symbol, until DESC, since DESC
)
SELECT ends.symbol, ends.blind_since AS since, ends.since AS until, causes.cause
FROM ends
LEFT JOIN causes ON causes.symbol = ends.symbol AND causes.until = ends.blind_since
WHERE ends.since > ends.blind_since
UNION ALL
SELECT symbol, until, NULL, ended FROM last WHERE until < 'infinity' AND ended <> 'unsubscribed'
UNION ALL
SELECT NULL,
       timestamptz 'epoch' + (detail ->> 'since')::bigint * interval '1 microsecond',
       timestamptz 'epoch' + (detail ->> 'until')::bigint * interval '1 microsecond',
       'overflow: ' || (detail ->> 'cause')
FROM feed_events WHERE event = 'overflow';

-- The feed's description of each instrument, one row for each symbol and exchange. To join names, as in the TimescaleDB
-- tutorial: SELECT * FROM instruments JOIN company USING (symbol);
CREATE VIEW instruments AS
SELECT told.symbol, detail ->> 'type' AS type, detail ->> 'exchange' AS exchange, detail ->> 'mic_code' AS mic_code,
       detail ->> 'currency' AS currency, detail ->> 'currency_base' AS currency_base,
       detail ->> 'currency_quote' AS currency_quote, first_seen, greatest(last_told, newest.received_at) AS last_seen
FROM (
    SELECT detail ->> 'symbol' AS symbol, coalesce(detail ->> 'exchange', '') AS exchange, min(at) AS first_seen,
           max(at) AS last_told, (array_agg(detail ORDER BY at DESC))[1] AS detail
    FROM feed_events WHERE event = 'instrument' GROUP BY 1, 2
) AS told
LEFT JOIN LATERAL (
    SELECT received_at FROM prices_real_time AS p
    WHERE p.symbol = told.symbol AND coalesce(p.exchange, '') = told.exchange
    ORDER BY p.time DESC, p.session DESC, p.seq DESC LIMIT 1
) AS newest ON true;
COMMENT ON VIEW instruments IS 'Symbol, type, exchange and currencies. The producer reports them once a session.';

-- Ended sessions that `tickpipe verify` has found complete, and does not scan again.
CREATE TABLE verified_sessions (
    session      bigint PRIMARY KEY,
    last_seq     bigint NOT NULL,
    rows         bigint NOT NULL,
    dead_letters bigint NOT NULL,
    lost         bigint NOT NULL,
    at           timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN verified_sessions.lost IS 'Numbers lost in a reported overflow: a recorded gap, not missing rows.';
