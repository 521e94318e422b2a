-- The continuous aggregates are replaced, since a column cannot be added to one. No candle is lost: those whose ticks are
-- gone are in candles_kept (0005). Until the policies have aggregated the others, they are computed from the ticks (0011).

CREATE OR REPLACE FUNCTION sized_ticks_between(since timestamptz, until timestamptz)
RETURNS TABLE (symbol text, "time" timestamptz, price float8, day_volume float8, size float8, exchange text, received_at timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT p.symbol, p.time, p.price, p.day_volume, p.size, p.exchange, p.received_at
    FROM prices_real_time AS p WHERE p.time >= since AND p.time < until;
END;

-- The largest first, as their refreshes lock them. The removal of a policy ends its job.
SELECT remove_continuous_aggregate_policy('aggregate_1d', if_exists => true),
       remove_continuous_aggregate_policy('aggregate_1h', if_exists => true),
       remove_continuous_aggregate_policy('aggregate_1m', if_exists => true);
ALTER MATERIALIZED VIEW aggregate_1d RENAME TO former_1d;
ALTER MATERIALIZED VIEW aggregate_1h RENAME TO former_1h;
ALTER MATERIALIZED VIEW aggregate_1m RENAME TO former_1m;

-- The volume of consecutive bars, without the rise of the counter to volume_to of the first bar that has a count: aggregated_bars
-- adds that. Its state: volume so far, last count, day. A bar without volume_to has sizes, or no count.
CREATE FUNCTION volume_of_bars_add(state float8[], bucket timestamptz, up_to float8, after float8, last float8) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN after IS NULL THEN state
            ELSE ARRAY[coalesce(state[1], 0) + after
                           + CASE WHEN up_to IS NULL OR state[2] IS NULL THEN 0
                                  ELSE volume_rise(state[2], up_to, state[3] <> utc_day(bucket)) END,
                       coalesce(last, state[2]), CASE WHEN last IS NULL THEN state[3] ELSE utc_day(bucket) END] END;
CREATE AGGREGATE volume_of_bars(bucket timestamptz, up_to float8, after float8, last float8) (
    sfunc = volume_of_bars_add, stype = float8[], finalfunc = volume_after_end, parallel = safe
);

-- As in 0006, but for volume_to and volume_after: volume_after is the sum of the sizes, if there are any.
CREATE MATERIALIZED VIEW aggregate_1m
WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT symbol, coalesce(exchange, '') AS exchange, time_bucket('1 minute', time) AS bucket,
       first(price, received_at) AS open, max(price) AS high, min(price) AS low, last(price, received_at) AS close,
       count(*) AS ticks, min(received_at) AS opened_at, max(received_at) AS closed_at,
       first(day_volume, received_at) FILTER (WHERE day_volume >= 0) AS first_volume,
       last(day_volume, received_at) FILTER (WHERE day_volume >= 0) AS last_volume,
       CASE WHEN sum(size) FILTER (WHERE is_size(size)) IS NULL
            THEN volume_to(first(day_volume, received_at) FILTER (WHERE day_volume >= 0),
                           last(day_volume, received_at) FILTER (WHERE day_volume >= 0), max(day_volume)) END AS volume_to,
       coalesce(sum(size) FILTER (WHERE is_size(size)),
                CASE WHEN max(day_volume) >= 0
                     THEN volume_after(first(day_volume, received_at) FILTER (WHERE day_volume >= 0),
                                       last(day_volume, received_at) FILTER (WHERE day_volume >= 0)) END) AS volume_after
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
       first(volume_to, bucket) FILTER (WHERE last_volume IS NOT NULL) AS volume_to,
       volume_of_bars(bucket, volume_to, volume_after, last_volume ORDER BY bucket) AS volume_after
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
       first(volume_to, bucket) FILTER (WHERE last_volume IS NOT NULL) AS volume_to,
       volume_of_bars(bucket, volume_to, volume_after, last_volume ORDER BY bucket) AS volume_after
FROM aggregate_1h
GROUP BY 1, 2, 3
WITH NO DATA;

-- Aggregated bars. The bar before is looked up by index, or if not all minutes between are aggregated, in the ticks.
CREATE OR REPLACE VIEW aggregated_bars AS
SELECT width, symbol, exchange, bucket, open, high, low, close, ticks, opened_at, closed_at, last_volume,
       CASE WHEN volume_to IS NULL THEN volume_after
            ELSE volume_after + coalesce(
           (SELECT CASE WHEN NOT tstzrange(p.bucket, b.bucket) && (SELECT unaggregated('1m'))
                        THEN volume_rise(p.last_volume, b.volume_to, utc_day(p.bucket) <> utc_day(b.bucket)) END
            FROM aggregate_1m AS p
            WHERE p.symbol = b.symbol AND p.exchange = b.exchange AND p.bucket < b.bucket
              AND p.bucket >= (SELECT candles_horizon()) AND p.last_volume IS NOT NULL
            ORDER BY p.bucket DESC LIMIT 1),
           volume_rise_to(b.symbol, b.exchange, b.bucket, b.first_volume, b.volume_to))
       END AS volume
FROM (SELECT '1m'::text AS width, * FROM aggregate_1m WHERE NOT bucket <@ (SELECT unaggregated('1m'))
      UNION ALL SELECT '1h', * FROM aggregate_1h WHERE NOT bucket <@ (SELECT unaggregated('1h'))
      UNION ALL SELECT '1d', * FROM aggregate_1d WHERE NOT bucket <@ (SELECT unaggregated('1d'))) AS b
WHERE bucket >= (SELECT candles_horizon());

-- Its body has the aggregates themselves, not their names.
CREATE OR REPLACE FUNCTION planned_chunks() RETURNS oid[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT aggregate_chunks(ARRAY['aggregate_1m', 'aggregate_1h', 'aggregate_1d']::regclass[]));

DROP MATERIALIZED VIEW former_1d;
DROP MATERIALIZED VIEW former_1h;
DROP MATERIALIZED VIEW former_1m;
DROP AGGREGATE volume_after_bars(timestamptz, float8, float8, float8);
DROP FUNCTION volume_after_add(float8[], timestamptz, float8, float8, float8);

-- As in 0006: a refresh is one transaction.
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
