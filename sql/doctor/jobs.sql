-- TimescaleDB's background jobs: columnstore, candles, retention.
SELECT count(*) || CASE count(*) WHEN 1 THEN ' background job' ELSE ' background jobs' END || ' failed in the last run' || coalesce(': ' || string_agg(proc_name || ' ' || job_id, ', '), ''),
       count(*) = 0, 'SELECT * FROM timescaledb_information.job_errors', true
FROM timescaledb_information.job_stats
JOIN timescaledb_information.jobs USING (job_id)
WHERE last_run_status = 'Failed'
