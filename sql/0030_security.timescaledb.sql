-- 0030_security.sql once more: these procedures are of TimescaleDB, or its schema was not known before.
DO $$
DECLARE
    routine record;
    path text;
BEGIN
    SELECT string_agg(quote_ident(nspname), ', ' ORDER BY ours DESC) || ', pg_temp' INTO path
    FROM (SELECT n.nspname, bool_or(n.oid = c.relnamespace) AS ours
          FROM pg_class AS c
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
              OR n.oid IN (SELECT extnamespace FROM pg_extension WHERE extname = 'timescaledb')
          WHERE c.oid = 'prices_real_time'::regclass
          GROUP BY n.nspname) AS schemas;
    FOR routine IN
        SELECT p.oid::regprocedure AS name, p.prokind, p.proconfig
        FROM pg_proc AS p
        WHERE p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'prices_real_time'::regclass)
          AND p.proname IN ('ticks_size', 'drop_ticks', 'expire_day', 'expire_ticks', 'expire_ticks_job', 'unaggregated', 'unaggregated_tail',
                            'unaggregated_bars')
    LOOP
        IF routine.prokind = 'p' THEN
            EXECUTE format('REVOKE ALL ON PROCEDURE %s FROM PUBLIC', routine.name);
        END IF;
        IF EXISTS (SELECT FROM unnest(routine.proconfig) AS setting WHERE setting LIKE 'search_path=%') THEN
            EXECUTE format('ALTER ROUTINE %s SET search_path = %s', routine.name, path);
        END IF;
    END LOOP;
END
$$;
