-- Candles. Ticks are aggregated into bars (one for each symbol, exchange and interval), and bars into candles (one for each
-- symbol and interval). Open and close are the first and the last price received in the bar. Volume is the rise of
-- day_volume, a counter that starts at 0 each day.
--
-- PostgreSQL computes all of this from the ticks at query time. With TimescaleDB the bars are continuous aggregates (0006)
-- with the same names, columns and results.

-- The rise of the counter from the last value of one bar to the last value of the next. A fall is a reset if the UTC day is
-- new, or if less than half is left: then the counter restarted at 0. A smaller fall is a correction, and counts as 0.
--
-- The last value, not the first, because a tick with a wrong time may bring a later value into the bar before. Values below
-- 0 are ignored: they are invalid, and the difference of two huge values would be out of range and end the query.
CREATE FUNCTION volume_rise(before float8, after float8, new_day boolean) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN after >= before THEN after - before WHEN new_day OR after < before / 2 THEN after ELSE 0 END;

-- The value that the counter rose to in a minute: its last value, or its highest if it was reset in that minute.
CREATE FUNCTION volume_to(first float8, last float8, highest float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN last < first / 2 THEN highest ELSE last END;

-- The value that it rose to after a reset in that minute.
CREATE FUNCTION volume_after(first float8, last float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN last < first / 2 THEN last ELSE 0 END;

-- The UTC day as a number. (The date of a timestamptz would depend on the session's time zone.)
CREATE FUNCTION utc_day(at timestamptz) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN floor(extract(epoch FROM at - timestamptz '1970-01-01 00:00:00+00')::float8 / 86400);

-- Bars whose ticks were deleted (0005): retention deletes ticks, never candles. All functions and views of bars have the
-- columns of this table.
CREATE TABLE candles_kept (
    width       text        NOT NULL CHECK (width IN ('1m', '1h', '1d')),
    symbol      text        NOT NULL,
    exchange    text        NOT NULL,
    bucket      timestamptz NOT NULL,
    open        float8      NOT NULL,
    high        float8      NOT NULL,
    low         float8      NOT NULL,
    close       float8      NOT NULL,
    ticks       bigint      NOT NULL,
    opened_at   timestamptz NOT NULL,
    closed_at   timestamptz NOT NULL,
    last_volume float8,
    volume      float8,
    PRIMARY KEY (symbol, width, exchange, bucket)
);
COMMENT ON COLUMN candles_kept.exchange IS 'Empty if the feed names none. Each exchange has its own counter.';
COMMENT ON COLUMN candles_kept.opened_at IS 'When its first tick was received. closed_at: its last tick.';
COMMENT ON COLUMN candles_kept.last_volume IS 'The last day_volume in the bar.';
COMMENT ON COLUMN candles_kept.volume IS 'The rise of day_volume from the last tick of the bar before to the last tick of this bar.';

-- The horizon: midnight of a UTC day. Bars before it are in candles_kept, even if some of their ticks still exist.
CREATE TABLE candles_horizon (one boolean PRIMARY KEY DEFAULT true CHECK (one), at timestamptz NOT NULL);
CREATE FUNCTION candles_horizon() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce((SELECT at FROM candles_horizon), '-infinity');

-- The rise of the counter to the value up_to, from its last value in the latest earlier minute. Without an earlier minute,
-- from its first value in this minute.
CREATE FUNCTION volume_rise_to(symbol text, exchange text, bucket timestamptz, first float8, up_to float8) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(
    (SELECT volume_rise(last.day_volume, up_to, utc_day(before.bar) <> utc_day(bucket))
     FROM (SELECT date_bin('1 minute', p.time, timestamptz '1970-01-01 00:00:00+00') AS bar FROM prices_real_time AS p
           WHERE p.symbol = volume_rise_to.symbol AND coalesce(p.exchange, '') = volume_rise_to.exchange
             AND p.time >= (SELECT candles_horizon()) AND p.time < bucket AND p.day_volume >= 0
           ORDER BY p.time DESC LIMIT 1) AS before
     CROSS JOIN LATERAL (
           SELECT p.day_volume FROM prices_real_time AS p
           WHERE p.symbol = volume_rise_to.symbol AND coalesce(p.exchange, '') = volume_rise_to.exchange
             AND p.time >= before.bar AND p.time < before.bar + interval '1 minute' AND p.day_volume >= 0
           ORDER BY p.received_at DESC LIMIT 1) AS last),
    (SELECT volume_rise(k.last_volume, up_to, utc_day(k.bucket) <> utc_day(volume_rise_to.bucket))
     FROM candles_kept AS k
     WHERE k.symbol = volume_rise_to.symbol AND k.width = '1m' AND k.exchange = volume_rise_to.exchange
       AND k.bucket < volume_rise_to.bucket AND k.last_volume IS NOT NULL
     ORDER BY k.bucket DESC LIMIT 1),
    volume_rise(first, up_to, false));

-- One-minute bars of the ticks in a span of the exchange's time; since and until must be whole minutes. A function, because
-- a filter on the bucket of a view could not use the index on time.
CREATE FUNCTION tick_minutes(since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT '1m', m.symbol, m.place, m.bin, m.open, m.high, m.low, m.close, m.ticks, m.opened_at, m.closed_at, m.last,
           CASE WHEN m.first IS NOT NULL
                THEN volume_rise_to(m.symbol, m.place, m.bin, m.first, volume_to(m.first, m.last, m.highest))
                     + volume_after(m.first, m.last) END
    FROM (
        SELECT p.symbol, coalesce(p.exchange, '') AS place,
               date_bin('1 minute', p.time, timestamptz '1970-01-01 00:00:00+00') AS bin,
               (array_agg(p.price ORDER BY p.received_at))[1] AS open, max(p.price) AS high, min(p.price) AS low,
               (array_agg(p.price ORDER BY p.received_at DESC))[1] AS close, count(*) AS ticks,
               min(p.received_at) AS opened_at, max(p.received_at) AS closed_at, max(p.day_volume) AS highest,
               (array_agg(p.day_volume ORDER BY p.received_at) FILTER (WHERE p.day_volume >= 0))[1] AS first,
               (array_agg(p.day_volume ORDER BY p.received_at DESC) FILTER (WHERE p.day_volume >= 0))[1] AS last
        FROM prices_real_time AS p
        WHERE p.time >= since AND p.time < until
        GROUP BY p.symbol, place, bin
    ) AS m;
END;
-- The first whole minute at or after this time.
CREATE FUNCTION whole_minute(at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN isfinite(at) THEN date_bin('1 minute', at + interval '59.999999 seconds', timestamptz '1970-01-01 00:00:00+00')
            ELSE at END;

-- The one-minute bars that begin in a span. TimescaleDB has its own version (0006), also of the view live_bars.
CREATE FUNCTION minutes(since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT * FROM candles_kept AS k WHERE k.width = '1m' AND k.bucket >= since AND k.bucket < until
    UNION ALL
    SELECT * FROM tick_minutes(greatest(whole_minute(since), candles_horizon()), whole_minute(until));
END;

-- Hours or days of these minutes. since and until must be whole bars.
CREATE FUNCTION larger_bars(width text, since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT larger_bars.width, m.symbol, m.exchange,
           date_bin(CASE larger_bars.width WHEN '1h' THEN interval '1 hour' WHEN '1d' THEN interval '1 day' END,
                    m.bucket, timestamptz '1970-01-01 00:00:00+00') AS bin,
           (array_agg(m.open ORDER BY m.opened_at))[1], max(m.high), min(m.low),
           (array_agg(m.close ORDER BY m.closed_at DESC))[1], sum(m.ticks)::bigint, min(m.opened_at), max(m.closed_at),
           (array_agg(m.last_volume ORDER BY m.bucket DESC) FILTER (WHERE m.last_volume IS NOT NULL))[1], sum(m.volume)
    FROM minutes(since, until) AS m
    GROUP BY m.symbol, m.exchange, bin;
END;

-- Bars from the horizon on.
CREATE VIEW live_bars AS
SELECT * FROM tick_minutes(candles_horizon(), 'infinity')
UNION ALL SELECT * FROM larger_bars('1h', candles_horizon(), 'infinity')
UNION ALL SELECT * FROM larger_bars('1d', candles_horizon(), 'infinity');

-- All bars, and candles: one for each symbol, over all its exchanges.
CREATE VIEW bars AS SELECT * FROM candles_kept UNION ALL SELECT * FROM live_bars;

CREATE VIEW candles_all AS
SELECT width, symbol, bucket, (array_agg(open ORDER BY opened_at))[1] AS open, max(high) AS high, min(low) AS low,
       (array_agg(close ORDER BY closed_at DESC))[1] AS close, sum(ticks)::bigint AS ticks, sum(volume) AS volume
FROM bars
GROUP BY width, symbol, bucket;

CREATE VIEW candles_1m AS SELECT symbol, bucket, open, high, low, close, ticks, volume FROM candles_all WHERE width = '1m';
CREATE VIEW candles_1h AS SELECT symbol, bucket, open, high, low, close, ticks, volume FROM candles_all WHERE width = '1h';
CREATE VIEW candles_1d AS SELECT symbol, bucket, open, high, low, close, ticks, volume FROM candles_all WHERE width = '1d';
COMMENT ON VIEW candles_1m IS 'One-minute candles. volume is derived from day_volume; NULL if the feed has no volume.';
COMMENT ON VIEW candles_1h IS 'One-hour candles.';
COMMENT ON VIEW candles_1d IS 'Candles of a UTC day.';

-- Candles of any width (a minute or more) from the minutes that begin in a span. It reads no other minutes. For 5 minutes:
-- SELECT * FROM candles('5 minutes', now() - interval '1 day', now()) WHERE symbol = 'BTC/USD' ORDER BY bucket;
CREATE FUNCTION candles(width interval, since timestamptz, until timestamptz)
RETURNS TABLE (symbol text, bucket timestamptz, open float8, high float8, low float8, close float8, ticks bigint, volume float8)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT p.symbol, date_bin(candles.width, p.bucket, timestamptz '1970-01-01 00:00:00+00') AS bin,
           (array_agg(p.open ORDER BY p.opened_at))[1], max(p.high), min(p.low),
           (array_agg(p.close ORDER BY p.closed_at DESC))[1], sum(p.ticks)::bigint, sum(p.volume)
    FROM minutes(since, until) AS p
    WHERE since IS NOT NULL AND until IS NOT NULL -- greatest() and least(), in minutes(), would ignore it
    GROUP BY p.symbol, bin;
END;
