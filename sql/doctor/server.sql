-- Findings of `tickpipe doctor` on the server, one in a row: what, well, advice, grave. It works without our tables.
-- reset_val is the value at the start of a session of this role.
WITH settings AS (
    SELECT name, reset_val AS value FROM pg_settings
), extension AS (
    SELECT installed_version AS installed FROM pg_available_extensions WHERE name = 'timescaledb'
    UNION
    SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'
    ORDER BY installed LIMIT 1 -- NULL last: available, not installed
)
SELECT 'the database answers: PostgreSQL ' || current_setting('server_version'),
       current_setting('server_version_num')::int >= 140000, 'upgrade: sql/ needs 14 or newer', true
UNION ALL
SELECT 'database: ' || name || ' ' || value, value = 'on', 'set ' || name || ' = on in postgresql.conf: a crash loses data', true
FROM settings WHERE name IN ('fsync', 'full_page_writes')
UNION ALL
SELECT 'database: synchronous_commit ' || value, value <> 'off',
       'tickpipe''s own sessions have it on; what others write can be lost in a crash', false
FROM settings WHERE name = 'synchronous_commit'
UNION ALL
SELECT 'database: time zone ' || value || ' (tickpipe''s own sessions: UTC)', true, '', false
FROM settings WHERE name = 'TimeZone'
UNION ALL
SELECT 'database: no TimescaleDB', false, 'plain PostgreSQL is for small use: no columnstore, no scheduler', false
WHERE NOT EXISTS (SELECT FROM extension)
UNION ALL
SELECT 'database: TimescaleDB is available, not installed', false, 'CREATE EXTENSION timescaledb', false
FROM extension WHERE installed IS NULL
UNION ALL
SELECT 'database: TimescaleDB ' || installed,
       regexp_replace(installed, '[^0-9.].*', '') !~ '^(0|1|2[.]([0-9]|1[0-7]))([.]|$)',
       'upgrade to 2.18: before, a tick delivered again after a week can make its block''s others be skipped (timescaledb 7672)',
       true
FROM extension WHERE installed IS NOT NULL
UNION ALL
SELECT 'database: timescaledb.license ' || value, value <> 'apache',
       'there is no columnstore in it: set it to timescale, with the Community edition', true
FROM settings WHERE name = 'timescaledb.license'
