-- What a feed with trades knows about each of them. The columns are NULL in prices of a feed without trades.
ALTER TABLE prices_real_time ADD COLUMN size double precision;
ALTER TABLE prices_real_time ADD COLUMN side text;
ALTER TABLE prices_real_time ADD COLUMN trade_id bigint;
ALTER TABLE prices_real_time ADD COLUMN source text;
COMMENT ON COLUMN prices_real_time.source IS 'backfill: requested later, from the exchange. NULL: received by a producer.';

-- Trades that the exchange has numbered and not sent. These are the values that views cast.
ALTER TABLE feed_events ADD CHECK (
    event <> 'skipped' OR coalesce(detail ->> 'first_id', '') ~ '^[0-9]{1,18}$' AND coalesce(detail ->> 'last_id', '') ~ '^[0-9]{1,18}$'
                          AND detail ? 'since' AND detail ? 'until');

-- Those that are missing still: not those that arrived late.
CREATE FUNCTION skipped_trades(first bigint, last bigint DEFAULT NULL)
RETURNS TABLE (session bigint, symbol text, exchange text, since timestamptz, until timestamptz, first_id bigint, last_id bigint, missing bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT found.session, found.symbol, found.exchange, found.since, found.until, found.first_id, found.last_id, found.missing
    FROM (
        SELECT e.session, e.symbol, e.exchange, e.since, e.until, e.first_id, e.last_id, e.last_id - e.first_id + 1 - (
                   SELECT count(DISTINCT p.trade_id) FROM prices_real_time AS p
                   WHERE p.symbol = e.symbol AND p.exchange = e.exchange AND p.trade_id BETWEEN e.first_id AND e.last_id
                     AND p.time >= e.time_min - interval '1 minute' AND p.time <= e.time_max + interval '1 minute'
               ) AS missing
        FROM (
            SELECT f.session, f.detail ->> 'symbol' AS symbol, f.detail ->> 'exchange' AS exchange,
                   (f.detail ->> 'first_id')::bigint AS first_id, (f.detail ->> 'last_id')::bigint AS last_id,
                   timestamptz 'epoch' + (f.detail ->> 'since')::bigint * interval '1 microsecond' AS since,
                   timestamptz 'epoch' + (f.detail ->> 'until')::bigint * interval '1 microsecond' AS until,
                   to_timestamp(coalesce((f.detail ->> 'time_min')::float8, (f.detail ->> 'since')::float8 / 1e6)) AS time_min,
                   to_timestamp(coalesce((f.detail ->> 'time_max')::float8, (f.detail ->> 'until')::float8 / 1e6)) AS time_max
            FROM feed_events AS f
            WHERE f.event = 'skipped' AND f.session >= skipped_trades.first
              AND (skipped_trades.last IS NULL OR f.session <= skipped_trades.last)
        ) AS e
    ) AS found
    WHERE found.missing > 0;
END;
COMMENT ON FUNCTION skipped_trades IS 'Trades that the exchange has numbered and not sent, in the sessions from `first` to `last`.';

COMMENT ON COLUMN prices_real_time.size IS 'How much was traded, in units of the base currency or in shares.';
COMMENT ON COLUMN prices_real_time.side IS 'The side of the order that caused the trade: buy or sell.';
COMMENT ON COLUMN prices_real_time.trade_id IS 'The exchange''s own number of the trade, for this symbol.';
