-- With TimescaleDB, the ticks are in a hypertable with the primary key as its only index. A chunk is a day, or as long as
-- `tickpipe migrate --chunk-interval` says. migrate_data: the table may have rows already.
SELECT create_hypertable('prices_real_time', 'time', create_default_indexes => false, migrate_data => true,
    chunk_time_interval => coalesce(nullif(current_setting('tickpipe.chunk_interval', true), ''), '1 day')::interval);

-- Chunks older than a week move to the columnstore, at a twentieth of the size. The order has all columns of the key but
-- symbol, so that a redelivered batch finds its rows without decompressing others. TimescaleDB 2.18 renamed the calls.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_proc WHERE proname = 'add_columnstore_policy') THEN
        ALTER TABLE prices_real_time SET (timescaledb.enable_columnstore, timescaledb.segmentby = 'symbol',
                                          timescaledb.orderby = 'time DESC, session, seq');
        EXECUTE $call$ CALL add_columnstore_policy('prices_real_time', after => interval '7 days') $call$;
    ELSE
        ALTER TABLE prices_real_time SET (timescaledb.compress, timescaledb.compress_segmentby = 'symbol',
                                          timescaledb.compress_orderby = 'time DESC, session, seq');
        PERFORM add_compression_policy('prices_real_time', interval '7 days');
    END IF;
END
$$;
