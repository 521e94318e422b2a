-- Trades that no producer has received, also those between two sessions; and each trade once, although `tickpipe backfill` may
-- have requested one that a consumer stores later.

-- The first price of an instrument in a session has its number, if it is a trade.
ALTER TABLE feed_events ADD CHECK (event <> 'instrument' OR coalesce(detail ->> 'trade_id', '0') ~ '^[0-9]{1,18}$');
CREATE INDEX feed_events_first_trades ON feed_events ((detail ->> 'symbol'), (detail ->> 'exchange'), session)
    WHERE event = 'instrument' AND detail ? 'trade_id';

-- Ranges of trades that were not received, in the sessions from `first` to `last`: those that a producer has noticed, and those
-- between the last trade of an instrument in its session before and the first one of this session.
CREATE FUNCTION trade_gaps(first bigint, last bigint DEFAULT NULL)
RETURNS TABLE (session bigint, symbol text, exchange text, since timestamptz, until timestamptz, first_id bigint, last_id bigint, missing bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH noticed AS (
        SELECT f.session, f.detail ->> 'symbol' AS symbol, f.detail ->> 'exchange' AS exchange,
               (f.detail ->> 'first_id')::bigint AS first_id, (f.detail ->> 'last_id')::bigint AS last_id,
               timestamptz 'epoch' + (f.detail ->> 'since')::bigint * interval '1 microsecond' AS since,
               timestamptz 'epoch' + (f.detail ->> 'until')::bigint * interval '1 microsecond' AS until,
               to_timestamp(coalesce((f.detail ->> 'time_min')::float8, (f.detail ->> 'since')::float8 / 1e6)) AS time_min,
               to_timestamp(coalesce((f.detail ->> 'time_max')::float8, (f.detail ->> 'until')::float8 / 1e6)) AS time_max
        FROM feed_events AS f
        WHERE f.event = 'skipped' AND f.session >= trade_gaps.first AND (trade_gaps.last IS NULL OR f.session <= trade_gaps.last)
    ), begun AS (
        SELECT i.session, i.at, i.detail ->> 'symbol' AS symbol, i.detail ->> 'exchange' AS exchange,
               (i.detail ->> 'trade_id')::bigint AS trade_id
        FROM feed_events AS i
        WHERE i.event = 'instrument' AND i.detail ? 'trade_id' AND i.session >= trade_gaps.first
          AND (trade_gaps.last IS NULL OR i.session <= trade_gaps.last)
    ), ranges AS (
        SELECT noticed.* FROM noticed
        UNION ALL
        SELECT b.session, b.symbol, b.exchange, before.trade_id + 1, b.trade_id - 1, before.received_at, b.at, before.time, b.at
        FROM begun AS b
        CROSS JOIN LATERAL (
            SELECT o.session FROM feed_events AS o
            WHERE o.event = 'instrument' AND o.detail ? 'trade_id' AND o.detail ->> 'symbol' = b.symbol
              AND o.detail ->> 'exchange' = b.exchange AND o.session < b.session
            ORDER BY o.session DESC LIMIT 1
        ) AS earlier
        CROSS JOIN LATERAL (
            SELECT p.trade_id, p.time, p.received_at FROM prices_real_time AS p
            WHERE p.symbol = b.symbol AND p.session = earlier.session AND p.exchange = b.exchange AND p.trade_id IS NOT NULL
              AND p.time <= b.at + interval '1 minute' AND p.time >= to_timestamp(earlier.session / 1e6) - interval '1 day'
            ORDER BY p.time DESC, p.seq DESC LIMIT 1
        ) AS before
        WHERE before.trade_id < b.trade_id - 1
          AND NOT coalesce((SELECT u.event = 'unsubscribed' FROM feed_events AS u
                            WHERE u.session = earlier.session AND u.event IN ('subscribed', 'unsubscribed')
                              AND u.detail -> 'symbols' ? b.symbol
                            ORDER BY u.number DESC LIMIT 1), false)
          AND NOT EXISTS (SELECT FROM noticed AS n WHERE n.session = b.session AND n.symbol = b.symbol AND n.exchange = b.exchange
                                                     AND n.last_id = b.trade_id - 1)
    )
    SELECT r.session, r.symbol, r.exchange, r.since, r.until, r.first_id, r.last_id, r.last_id - r.first_id + 1 - (
               SELECT count(DISTINCT p.trade_id) FROM prices_real_time AS p
               WHERE p.symbol = r.symbol AND p.exchange = r.exchange AND p.trade_id BETWEEN r.first_id AND r.last_id
                 AND p.time >= r.time_min - interval '1 minute' AND p.time <= r.time_max + interval '1 minute')
    FROM ranges AS r;
END;
COMMENT ON FUNCTION trade_gaps IS 'Ranges of trades that were not received, by the numbers of the exchange. missing: how many of them are not stored now.';

CREATE OR REPLACE FUNCTION skipped_trades(first bigint, last bigint DEFAULT NULL)
RETURNS TABLE (session bigint, symbol text, exchange text, since timestamptz, until timestamptz, first_id bigint, last_id bigint, missing bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT g.* FROM trade_gaps(skipped_trades.first, skipped_trades.last) AS g WHERE g.missing > 0;
END;
COMMENT ON FUNCTION skipped_trades IS 'Trades that the exchange has numbered and that are not stored, in the sessions from `first` to `last`.';

-- Exchange times of trades that `tickpipe backfill` has stored. A consumer that stores a trade of such a span removes the copy that
-- was requested: the trade was in Redis or in a spool at that time.
CREATE TABLE repaired_spans (
    symbol   text        NOT NULL,
    exchange text        NOT NULL,
    since    timestamptz NOT NULL,
    until    timestamptz NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX repaired_spans_by_end ON repaired_spans (until);
COMMENT ON TABLE repaired_spans IS 'Exchange times of trades that `tickpipe backfill` has requested and stored.';

CREATE FUNCTION has_repairs(since timestamptz, until timestamptz) RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (SELECT FROM repaired_spans AS s WHERE s.until >= has_repairs.since AND s.since <= has_repairs.until);
COMMENT ON FUNCTION has_repairs IS 'Whether trades of this span of exchange times were requested later.';
