-- Candles and retention that read each tick of a span once (docs/adr/0010). Replaces functions of 0004 and 0005.

-- Bars of a span, of all symbols.
CREATE INDEX candles_kept_by_bucket ON candles_kept (width, bucket);

-- The symbols of the ticks, one step of the primary key for each symbol.
CREATE FUNCTION known_symbols() RETURNS SETOF text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH RECURSIVE found AS (
        (SELECT symbol FROM prices_real_time ORDER BY symbol LIMIT 1)
        UNION ALL
        SELECT (SELECT p.symbol FROM prices_real_time AS p WHERE p.symbol > f.symbol ORDER BY p.symbol LIMIT 1)
        FROM found AS f WHERE f.symbol IS NOT NULL
    )
    SELECT symbol FROM found WHERE symbol IS NOT NULL;
END;

-- The ticks of a span of the exchange's time. The primary key begins with the symbol: with all symbols named, the planner
-- can use it for a span. Replaced on TimescaleDB (0011), where chunks bound a span.
CREATE FUNCTION ticks_between(since timestamptz, until timestamptz)
RETURNS TABLE (symbol text, "time" timestamptz, price float8, day_volume float8, exchange text, received_at timestamptz,
               session bigint, seq bigint)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT p.symbol, p.time, p.price, p.day_volume, p.exchange, p.received_at, p.session, p.seq
    FROM prices_real_time AS p
    WHERE p.symbol = ANY (ARRAY(SELECT s FROM known_symbols() AS s)) AND p.time >= since AND p.time < until;
END;

-- The time of the oldest tick from this moment on. Replaced on TimescaleDB (0011).
CREATE FUNCTION first_tick(since timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT min(oldest.time)
        FROM known_symbols() AS s
        CROSS JOIN LATERAL (SELECT p.time FROM prices_real_time AS p WHERE p.symbol = s AND p.time >= first_tick.since
                            ORDER BY p.time LIMIT 1) AS oldest);

-- The minutes of the ticks in a span (whole minutes). The count before is that of the minute before in the span;
-- volume_rise_to() looks it up for the first minute of each counter alone.
CREATE OR REPLACE FUNCTION tick_minutes(since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT '1m', m.symbol, m.place, m.bin, m.open, m.high, m.low, m.close, m.ticks, m.opened_at, m.closed_at, m.last,
           CASE WHEN m.first IS NOT NULL
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
                   (array_agg(p.day_volume ORDER BY p.received_at DESC) FILTER (WHERE p.day_volume >= 0))[1] AS last
            FROM ticks_between(since, until) AS p
            GROUP BY bin, p.symbol, place -- the time first: it sorts fastest
        ) AS grouped
        WINDOW counter AS (PARTITION BY symbol, place, first IS NULL ORDER BY bin) -- minutes without a count are passed over
    ) AS m;
END;

-- Retention, one day of ticks in a transaction. The rest is as in 0005: their numbers are recorded, their candles kept, and
-- no consumer writes during it, so that the record holds exactly what is dropped. until: midnight of a UTC day.
CREATE PROCEDURE expire_day(until timestamptz)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    since timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'expire_ticks needs READ COMMITTED: what was committed while it waited for its lock must be seen';
    END IF;
    LOCK TABLE prices_real_time IN SHARE ROW EXCLUSIVE MODE;
    since := candles_horizon();
    -- (What was dropped before and delivered again is on record already.)
    INSERT INTO feed_expired (session, first_seq, last_seq)
        SELECT session, min(seq), max(seq)
        FROM (SELECT session, seq, seq - row_number() OVER (PARTITION BY session ORDER BY seq) AS island
              FROM (SELECT DISTINCT session, seq FROM ticks_between('-infinity', until) AS p
                    WHERE time >= since OR NOT EXISTS (
                        SELECT FROM feed_expired AS e
                        WHERE e.session = p.session AND p.seq BETWEEN e.first_seq AND e.last_seq)) AS numbers) AS numbers
        GROUP BY session, island
        ON CONFLICT DO NOTHING;
    IF until > since THEN
        INSERT INTO candles_kept SELECT * FROM tick_minutes(since, until);
        INSERT INTO candles_horizon (at) VALUES (until) ON CONFLICT (one) DO UPDATE SET at = EXCLUDED.at;
        INSERT INTO candles_kept SELECT * FROM larger_bars('1h', since, until); -- of the minutes just kept
        INSERT INTO candles_kept SELECT * FROM larger_bars('1d', since, until);
    END IF;
    CALL drop_ticks(until);
END
$$;

CREATE OR REPLACE PROCEDURE drop_ticks(before timestamptz)
LANGUAGE sql
BEGIN ATOMIC
    DELETE FROM prices_real_time WHERE symbol = ANY (ARRAY(SELECT s FROM known_symbols() AS s)) AND time < before;
END;

-- Drop the ticks before a moment (its UTC day's midnight), the oldest day first. Each day is committed: consumers wait for one
-- day at most, and an interruption loses nothing. So it cannot run in a transaction block, nor have a search path of its
-- own: it names its schema.
DROP PROCEDURE expire_ticks(timestamptz);
DO $$
BEGIN
    EXECUTE format($procedure$
        CREATE PROCEDURE %1$I.expire_ticks(before timestamptz)
        LANGUAGE plpgsql AS $body$
        DECLARE
            target timestamptz := date_trunc('day', before, 'UTC');
            until timestamptz;
        BEGIN
            IF target > now() THEN
                RAISE EXCEPTION 'ticks of today and later are not dropped: %% is not over', before;
            END IF;
            LOOP
                -- Before the ticks are read: two runs would otherwise wait for each other.
                LOCK TABLE %1$I.prices_real_time IN SHARE ROW EXCLUSIVE MODE;
                until := least(target, date_trunc('day', %1$I.first_tick(%1$I.candles_horizon()), 'UTC') + interval '24 hours');
                CALL %1$I.expire_day(until);
                COMMIT;
                EXIT WHEN until >= target;
            END LOOP;
        END
        $body$
    $procedure$, current_schema());
END
$$;
