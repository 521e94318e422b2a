-- Candles that are right whatever is aggregated and whatever is not (docs/adr/0011). Replaces functions and views of 0006,
-- which took everything before the newest aggregated bar from the aggregates.

CREATE OR REPLACE FUNCTION ticks_between(since timestamptz, until timestamptz)
RETURNS TABLE (symbol text, "time" timestamptz, price float8, day_volume float8, exchange text, received_at timestamptz,
               session bigint, seq bigint)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT p.symbol, p.time, p.price, p.day_volume, p.exchange, p.received_at, p.session, p.seq
    FROM prices_real_time AS p WHERE p.time >= since AND p.time < until;
END;

CREATE OR REPLACE FUNCTION first_tick(since timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT min(p.time) FROM prices_real_time AS p WHERE p.time >= first_tick.since);

-- The chunks of these aggregates.
CREATE FUNCTION aggregate_chunks(aggregates regclass[]) RETURNS SETOF oid
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT chunk.inhrelid FROM pg_inherits AS chunk
    WHERE chunk.inhparent IN (SELECT d.refobjid FROM pg_rewrite AS r
                              JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                                  AND d.refclassid = 'pg_class'::regclass
                              WHERE r.ev_class = ANY (aggregates));
END;

-- The chunks that the plan of a query has at least. A query is planned before it takes its snapshot. If a refresh commits
-- between, the snapshot has bars in chunks that the plan lacks. This function is declared IMMUTABLE, although it is not:
-- PostgreSQL then calls it once, when it plans the query, before TimescaleDB looks up the chunks. A new chunk of a table
-- ends all kept plans that read this table.
CREATE FUNCTION planned_chunks() RETURNS oid[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT aggregate_chunks(ARRAY['aggregate_1m', 'aggregate_1h', 'aggregate_1d']::regclass[]));

-- The spans whose bars of this width are not aggregated, or no longer as the ticks say: whole bars, from the horizon on.
-- TimescaleDB logs them: spans written since a refresh (by hypertable), spans that no refresh has covered (by aggregate), and
-- in some versions spans that a refresh was about to aggregate. A log and the bars change in one transaction.
-- A bar is made of those of the width below, so their spans count, too. If a version has other logs, or if the aggregate has
-- a chunk that is not planned, nothing counts as aggregated: slower, and right. (No view or SQL body may name these tables:
-- an update of the extension replaces them.)
CREATE FUNCTION unaggregated(width text, planned oid[] DEFAULT planned_chunks()) RETURNS tstzmultirange
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
DECLARE
    catalog CONSTANT text := '_timescaledb_catalog.continuous_aggs_';
    bar CONSTANT bigint := CASE width WHEN '1m' THEN 60 WHEN '1h' THEN 3600 ELSE 86400 END * 1000000::bigint;
    aggregates CONSTANT regclass[] := CASE width WHEN '1m' THEN ARRAY['aggregate_1m'] WHEN '1h' THEN ARRAY['aggregate_1m', 'aggregate_1h']
                                      ELSE ARRAY['aggregate_1m', 'aggregate_1h', 'aggregate_1d'] END;
    logs text := '';
    spans tstzmultirange;
BEGIN
    IF to_regclass(catalog || 'hypertable_invalidation_log') IS NULL OR to_regclass(catalog || 'materialization_invalidation_log') IS NULL
       OR EXISTS (SELECT FROM aggregate_chunks(ARRAY['aggregate_' || width]::regclass[]) AS chunk WHERE chunk <> ALL (planned)) THEN
        RETURN tstzmultirange(tstzrange(candles_horizon(), 'infinity'));
    END IF;
    IF to_regclass(catalog || 'materialization_ranges') IS NOT NULL THEN
        logs := format('UNION ALL SELECT mat_hypertable_id, lowest_modified_value, greatest_modified_value
                        FROM %smaterialization_ranges JOIN ours ON materialization_id = mat_hypertable_id', catalog);
    END IF;
    EXECUTE format($query$
        WITH ours AS (
            SELECT a.mat_hypertable_id, a.raw_hypertable_id
            FROM _timescaledb_catalog.continuous_agg AS a
            JOIN pg_namespace AS n ON n.nspname = a.user_view_schema
            JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = a.user_view_name
            WHERE c.oid = ANY ($1)
        ), changed (id, lowest, greatest) AS ( -- microseconds since 1970, both ends in it
            SELECT mat_hypertable_id, lowest_modified_value, greatest_modified_value
            FROM %1$smaterialization_invalidation_log JOIN ours ON materialization_id = mat_hypertable_id
            UNION ALL SELECT mat_hypertable_id, lowest_modified_value, greatest_modified_value
            FROM %1$shypertable_invalidation_log JOIN ours ON hypertable_id = raw_hypertable_id
            %2$s
        )
        SELECT range_agg(tstzrange(
            timestamptz 'epoch' + greatest(lowest, 0) / $2 * $2 * interval '1 microsecond',
            CASE WHEN greatest < 4102444800000000 THEN timestamptz 'epoch' + (greatest / $2 + 1) * $2 * interval '1 microsecond'
                 ELSE 'infinity' END))
        FROM changed WHERE greatest >= 0 AND lowest < 4102444800000000
        $query$, catalog, logs) INTO spans USING aggregates, bar;
    RETURN coalesce(spans, '{}') * tstzmultirange(tstzrange(candles_horizon(), 'infinity'));
END
$$;

-- Aggregated bars. The bar before is looked up by index, or if not all minutes between are aggregated, in the ticks.
CREATE OR REPLACE VIEW aggregated_bars AS
SELECT width, symbol, exchange, bucket, open, high, low, close, ticks, opened_at, closed_at, last_volume,
       CASE WHEN first_volume IS NOT NULL THEN volume_after + coalesce(
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

-- The last of these spans is the usual one, the newest minutes. It has its own function, so that the planner leaves chunks
-- out, and lets a filter on the symbol through.
CREATE FUNCTION unaggregated_tail(width text, planned oid[] DEFAULT planned_chunks()) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE SET search_path FROM CURRENT
RETURN coalesce((SELECT lower(span) FROM unnest(unaggregated(width, planned)) AS span WHERE upper(span) = 'infinity'), 'infinity');

-- The bars of another of these spans, planned for this span alone: only its chunks are opened.
CREATE FUNCTION unaggregated_bars(width text, since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF width = '1m' THEN
        RETURN QUERY EXECUTE 'SELECT * FROM tick_minutes($1, $2)' USING since, until;
    ELSE
        RETURN QUERY EXECUTE format('SELECT * FROM larger_bars(%L, $1, $2)', width) USING since, until;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION minutes(since timestamptz, until timestamptz) RETURNS SETOF candles_kept
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT * FROM candles_kept AS k WHERE k.width = '1m' AND k.bucket >= since AND k.bucket < until
    UNION ALL
    SELECT * FROM aggregated_bars AS b WHERE b.width = '1m' AND b.bucket >= since AND b.bucket < until
    UNION ALL
    SELECT * FROM tick_minutes(greatest(whole_minute(since), unaggregated_tail('1m')), whole_minute(until))
    UNION ALL
    SELECT m.* FROM unnest((SELECT unaggregated('1m'))) AS span
    CROSS JOIN LATERAL unaggregated_bars('1m', greatest(whole_minute(since), lower(span)), least(whole_minute(until), upper(span))) AS m
    WHERE upper(span) < 'infinity' AND lower(span) < until AND upper(span) > since;
END;

CREATE OR REPLACE VIEW live_bars AS
SELECT * FROM aggregated_bars
UNION ALL SELECT * FROM tick_minutes(unaggregated_tail('1m'), 'infinity')
UNION ALL SELECT * FROM larger_bars('1h', unaggregated_tail('1h'), 'infinity')
UNION ALL SELECT * FROM larger_bars('1d', unaggregated_tail('1d'), 'infinity')
UNION ALL
SELECT every.width, m.symbol, m.exchange, m.bucket, m.open, m.high, m.low, m.close, m.ticks, m.opened_at, m.closed_at,
       m.last_volume, m.volume
FROM (VALUES ('1m'), ('1h'), ('1d')) AS every (width)
CROSS JOIN LATERAL unnest(unaggregated(every.width)) AS span
CROSS JOIN LATERAL unaggregated_bars(every.width, lower(span), upper(span)) AS m
WHERE upper(span) < 'infinity'
UNION ALL
-- No rows. A prepared query is planned again for a chunk that was created while it was planned, but only if the query or its
-- views name the table. Functions do not count.
SELECT k.* FROM candles_kept AS k, prices_real_time WHERE false;

DROP FUNCTION live_since(text);

CREATE OR REPLACE PROCEDURE drop_ticks(before timestamptz)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config(name, '0', true) FROM pg_settings
        WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction';
    PERFORM drop_chunks('prices_real_time', older_than => before);
    DELETE FROM prices_real_time WHERE time < before;
END
$$;

-- The job, which commits day by day, too: it names its schema, as expire_ticks does (0010).
DO $$
BEGIN
    EXECUTE format($procedure$
        CREATE OR REPLACE PROCEDURE %1$I.expire_ticks_job(job_id integer, config jsonb)
        LANGUAGE plpgsql AS $body$
        BEGIN
            CALL %1$I.expire_ticks(now() - (config ->> 'ticks')::interval);
        END
        $body$
    $procedure$, current_schema());
END
$$;
