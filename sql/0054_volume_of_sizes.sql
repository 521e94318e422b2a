-- The volume of a bar is the sum of the sizes of its trades. Without sizes it is the rise of day_volume, as before (0010).

-- As ticks_between (0010), with the size. TimescaleDB has its own version.
CREATE FUNCTION sized_ticks_between(since timestamptz, until timestamptz)
RETURNS TABLE (symbol text, "time" timestamptz, price float8, day_volume float8, size float8, exchange text, received_at timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT p.symbol, p.time, p.price, p.day_volume, p.size, p.exchange, p.received_at
    FROM prices_real_time AS p
    WHERE p.symbol = ANY (ARRAY(SELECT s FROM known_symbols() AS s)) AND p.time >= since AND p.time < until;
END;

-- Whether a size can be part of a sum. A sum of valid sizes never overflows: an overflow would end the query. (NaN is greater
-- than all numbers.)
CREATE FUNCTION is_size(size float8) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN size >= 0 AND size < 1e100;

CREATE OR REPLACE FUNCTION tick_minutes(since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT '1m', m.symbol, m.place, m.bin, m.open, m.high, m.low, m.close, m.ticks, m.opened_at, m.closed_at, m.last,
           CASE WHEN m.traded IS NOT NULL THEN m.traded
                WHEN m.first IS NOT NULL
                THEN CASE WHEN m.bin_before IS NOT NULL
                          THEN volume_rise(m.last_before, volume_to(m.first, m.last, m.highest), utc_day(m.bin_before) <> utc_day(m.bin))
                          ELSE volume_rise_to(m.symbol, m.place, m.bin, m.first, volume_to(m.first, m.last, m.highest)) END
                     + volume_after(m.first, m.last) END
    FROM (
        SELECT grouped.*, lag(bin) OVER counter AS bin_before, lag(last) OVER counter AS last_before
        FROM (
            SELECT p.symbol, coalesce(p.exchange, '') AS place,
                   date_bin('1 minute', p.time, timestamptz '1970-01-01 00:00:00+00') AS bin,
                   (array_agg(p.price ORDER BY p.received_at))[1] AS open, max(p.price) AS high, min(p.price) AS low,
                   (array_agg(p.price ORDER BY p.received_at DESC))[1] AS close, count(*) AS ticks,
                   min(p.received_at) AS opened_at, max(p.received_at) AS closed_at, max(p.day_volume) AS highest,
                   (array_agg(p.day_volume ORDER BY p.received_at) FILTER (WHERE p.day_volume >= 0))[1] AS first,
                   (array_agg(p.day_volume ORDER BY p.received_at DESC) FILTER (WHERE p.day_volume >= 0))[1] AS last,
                   sum(p.size) FILTER (WHERE is_size(p.size)) AS traded
            FROM sized_ticks_between(since, until) AS p
            GROUP BY bin, p.symbol, place -- the time first: it sorts fastest
        ) AS grouped
        WINDOW counter AS (PARTITION BY symbol, place, first IS NULL ORDER BY bin) -- minutes without a count are passed over
    ) AS m;
END;

COMMENT ON COLUMN candles_kept.volume IS 'The sum of the sizes of its trades. Without sizes: the rise of day_volume from the last tick of the bar before to the last tick of this bar.';
COMMENT ON VIEW candles_1m IS 'One-minute candles. volume is the sum of the sizes of trades. Of a feed without sizes it is derived from day_volume; NULL if the feed has neither.';
