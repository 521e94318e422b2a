-- TimescaleDB's background jobs: columnstore, candles, retention.
SELECT count(*) || ' background jobs failed at their last run' || coalesce(': ' || string_agg(proc_name || ' ' || job_id, ', '), ''),
       count(*) = 0, 'SELECT * FROM timescaledb_information.job_errors', true
FROM timescaledb_information.job_stats
JOIN timescaledb_information.jobs USING (job_id)
WHERE last_run_status = 'Failed'
