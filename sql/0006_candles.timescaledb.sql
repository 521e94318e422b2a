-- With TimescaleDB, bars (0004) are continuous aggregates, under the same names. Their policies have no start, so that the
-- next refresh includes late ticks of any age.
--
-- TimescaleDB's real-time aggregation is off: it would read all ticks since the last refresh for every bar that looks up the
-- bar before (docs/adr/0006). Instead, live_bars adds the bars that are not aggregated yet, once for each query.

-- An aggregate over consecutive bars: the rise of the counter after volume_to of the first bar. Its state: rise so far, last
-- value, day. (A continuous aggregate may use an aggregate, but not lag().)
CREATE FUNCTION volume_after_add(state float8[], bucket timestamptz, up_to float8, after float8, last float8) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN last IS NULL THEN state
            WHEN state IS NULL THEN ARRAY[after, last, utc_day(bucket)]
            ELSE ARRAY[state[1] + volume_rise(state[2], up_to, state[3] <> utc_day(bucket)) + after, last, utc_day(bucket)] END;
CREATE FUNCTION volume_after_end(state float8[]) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN state[1];
CREATE AGGREGATE volume_after_bars(bucket timestamptz, up_to float8, after float8, last float8) (
    sfunc = volume_after_add, stype = float8[], finalfunc = volume_after_end, parallel = safe
);

CREATE MATERIALIZED VIEW aggregate_1m
WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT symbol, coalesce(exchange, '') AS exchange, time_bucket('1 minute', time) AS bucket,
       first(price, received_at) AS open, max(price) AS high, min(price) AS low, last(price, received_at) AS close,
       count(*) AS ticks, min(received_at) AS opened_at, max(received_at) AS closed_at,
       first(day_volume, received_at) FILTER (WHERE day_volume >= 0) AS first_volume,
       last(day_volume, received_at) FILTER (WHERE day_volume >= 0) AS last_volume,
       volume_to(first(day_volume, received_at) FILTER (WHERE day_volume >= 0),
                 last(day_volume, received_at) FILTER (WHERE day_volume >= 0), max(day_volume)) AS volume_to,
       volume_after(first(day_volume, received_at) FILTER (WHERE day_volume >= 0),
                    last(day_volume, received_at) FILTER (WHERE day_volume >= 0)) AS volume_after
FROM prices_real_time
GROUP BY 1, 2, 3
WITH NO DATA;

CREATE MATERIALIZED VIEW aggregate_1h
WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT symbol, exchange, time_bucket('1 hour', bucket) AS bucket,
       first(open, opened_at) AS open, max(high) AS high, min(low) AS low, last(close, closed_at) AS close,
       sum(ticks)::bigint AS ticks, min(opened_at) AS opened_at, max(closed_at) AS closed_at,
       first(first_volume, bucket) FILTER (WHERE first_volume IS NOT NULL) AS first_volume,
       last(last_volume, bucket) FILTER (WHERE last_volume IS NOT NULL) AS last_volume,
       first(volume_to, bucket) FILTER (WHERE volume_to IS NOT NULL) AS volume_to,
       volume_after_bars(bucket, volume_to, volume_after, last_volume ORDER BY bucket) AS volume_after
FROM aggregate_1m
GROUP BY 1, 2, 3
WITH NO DATA;

CREATE MATERIALIZED VIEW aggregate_1d
WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT symbol, exchange, time_bucket('1 day', bucket) AS bucket,
       first(open, opened_at) AS open, max(high) AS high, min(low) AS low, last(close, closed_at) AS close,
       sum(ticks)::bigint AS ticks, min(opened_at) AS opened_at, max(closed_at) AS closed_at,
       first(first_volume, bucket) FILTER (WHERE first_volume IS NOT NULL) AS first_volume,
       last(last_volume, bucket) FILTER (WHERE last_volume IS NOT NULL) AS last_volume,
       first(volume_to, bucket) FILTER (WHERE volume_to IS NOT NULL) AS volume_to,
       volume_after_bars(bucket, volume_to, volume_after, last_volume ORDER BY bucket) AS volume_after
FROM aggregate_1h
GROUP BY 1, 2, 3
WITH NO DATA;

-- A refresh must be one transaction. TimescaleDB 2.19 and newer commit bar by bar by default, the newest first. Until the
-- oldest is done, bars in between would be missing: they are not aggregated, and too old to be computed from ticks.
DO $$
DECLARE
    at_once text := CASE WHEN EXISTS (SELECT FROM pg_proc WHERE proname = 'add_continuous_aggregate_policy'
                                      AND 'buckets_per_batch' = ANY (proargnames)) THEN ', buckets_per_batch => 0' ELSE '' END;
BEGIN
    EXECUTE format($call$SELECT add_continuous_aggregate_policy('aggregate_1m', NULL, '1 minute'::interval, '1 minute'::interval %1$s),
        add_continuous_aggregate_policy('aggregate_1h', NULL, '1 hour'::interval, '5 minutes'::interval %1$s),
        add_continuous_aggregate_policy('aggregate_1d', NULL, '1 day'::interval, '15 minutes'::interval %1$s)$call$, at_once);
END
$$;

-- The time from which on live_bars computes bars of this width. A bar is final once its policy has run after its end: its
-- width, plus the policy's distance from now, plus one schedule interval. Younger aggregated bars are ignored (a refresh by
-- hand or a tick from the future makes them), since the current bar would stop changing.
CREATE FUNCTION live_since(width text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN greatest(candles_horizon(), CASE width
    WHEN '1m' THEN (SELECT max(bucket) FROM aggregate_1m WHERE bucket <= now() - interval '3 minutes')
    WHEN '1h' THEN (SELECT max(bucket) FROM aggregate_1h WHERE bucket <= now() - interval '2 hours 10 minutes')
    WHEN '1d' THEN (SELECT max(bucket) FROM aggregate_1d WHERE bucket <= now() - interval '2 days 20 minutes') END);

-- Aggregated bars. The bar before is found by index; before the horizon, in candles_kept.
CREATE VIEW aggregated_bars AS
SELECT width, symbol, exchange, bucket, open, high, low, close, ticks, opened_at, closed_at, last_volume,
       CASE WHEN first_volume IS NOT NULL THEN volume_after + coalesce(
           (SELECT volume_rise(p.last_volume, b.volume_to, utc_day(p.bucket) <> utc_day(b.bucket)) FROM aggregate_1m AS p
            WHERE p.symbol = b.symbol AND p.exchange = b.exchange AND p.bucket < b.bucket
              AND p.bucket >= (SELECT candles_horizon()) AND p.last_volume IS NOT NULL
            ORDER BY p.bucket DESC LIMIT 1),
           (SELECT volume_rise(k.last_volume, b.volume_to, utc_day(k.bucket) <> utc_day(b.bucket)) FROM candles_kept AS k
            WHERE k.symbol = b.symbol AND k.width = '1m' AND k.exchange = b.exchange AND k.last_volume IS NOT NULL
            ORDER BY k.bucket DESC LIMIT 1),
           volume_rise(b.first_volume, b.volume_to, false))
       END AS volume
FROM (SELECT '1m'::text AS width, * FROM aggregate_1m
      UNION ALL SELECT '1h', * FROM aggregate_1h
      UNION ALL SELECT '1d', * FROM aggregate_1d) AS b
WHERE bucket >= (SELECT candles_horizon());

CREATE OR REPLACE FUNCTION minutes(since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT * FROM candles_kept AS k WHERE k.width = '1m' AND k.bucket >= since AND k.bucket < until
    UNION ALL
    SELECT * FROM aggregated_bars AS b
    WHERE b.width = '1m' AND b.bucket >= since AND b.bucket < least(until, live_since('1m'))
    UNION ALL
    SELECT * FROM tick_minutes(greatest(whole_minute(since), live_since('1m')), whole_minute(until));
END;

CREATE OR REPLACE VIEW live_bars AS
SELECT * FROM aggregated_bars
WHERE bucket < CASE width WHEN '1m' THEN (SELECT live_since('1m')) WHEN '1h' THEN (SELECT live_since('1h'))
                          ELSE (SELECT live_since('1d')) END
UNION ALL SELECT * FROM tick_minutes(live_since('1m'), 'infinity')
UNION ALL SELECT * FROM larger_bars('1h', live_since('1h'), 'infinity')
UNION ALL SELECT * FROM larger_bars('1d', live_since('1d'), 'infinity');

-- Drop whole chunks, and delete rows from a chunk that also has younger ticks. In the columnstore these may be more rows
-- than TimescaleDB decompresses in one transaction by default (2.14 and newer: 100,000).
CREATE OR REPLACE PROCEDURE drop_ticks(before timestamptz)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config(name, '0', true) FROM pg_settings
        WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction';
    PERFORM drop_chunks('prices_real_time', older_than => before);
    DELETE FROM prices_real_time WHERE time < before;
END
$$;

-- TimescaleDB's scheduler calls this. `tickpipe retention` adds the job. config: {"ticks": "90 days"}
CREATE PROCEDURE expire_ticks_job(job_id integer, config jsonb)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    CALL expire_ticks(now() - (config ->> 'ticks')::interval);
END
$$;
