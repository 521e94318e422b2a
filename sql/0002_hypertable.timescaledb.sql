-- Where TimescaleDB is, the ticks are a hypertable from the start, with the primary key as its only index.
SELECT create_hypertable('prices_real_time', 'time',
                         chunk_time_interval => interval '1 day', create_default_indexes => false, migrate_data => true);
