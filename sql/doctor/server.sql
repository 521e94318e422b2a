-- The state of the server: one row per finding (what, well, advice, grave). Works on every PostgreSQL, with or without
-- tickpipe's tables. reset_val is the value with which a session of this role starts.
WITH settings AS (
    SELECT name, reset_val AS value FROM pg_settings
), extension AS (
    SELECT installed_version AS installed FROM pg_available_extensions WHERE name = 'timescaledb'
    UNION
    SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'
    ORDER BY installed LIMIT 1 -- NULL last: available, not installed
)
SELECT 'the database answers: PostgreSQL ' || current_setting('server_version'),
       current_setting('server_version_num')::int >= 140000, 'upgrade: tickpipe needs PostgreSQL 14 or newer', true
UNION ALL
SELECT 'database: ' || name || ' ' || value, value = 'on', 'set ' || name || ' = on in postgresql.conf: a crash loses data', true
FROM settings WHERE name IN ('fsync', 'full_page_writes')
UNION ALL
SELECT 'database: synchronous_commit ' || value, value <> 'off',
       'tickpipe''s own sessions turn it on, but a crash can lose what other sessions commit', false
FROM settings WHERE name = 'synchronous_commit'
UNION ALL
SELECT 'database: time zone ' || value || ' (tickpipe''s own sessions: UTC)', true, '', false
FROM settings WHERE name = 'TimeZone'
UNION ALL
SELECT 'database: no TimescaleDB', false, 'plain PostgreSQL has no columnstore and no scheduler: it suits small amounts of data', false
WHERE NOT EXISTS (SELECT FROM extension)
UNION ALL
SELECT 'database: TimescaleDB is available, but not installed', false, 'CREATE EXTENSION timescaledb', false
FROM extension WHERE installed IS NULL
UNION ALL
SELECT 'database: TimescaleDB ' || installed,
       regexp_replace(installed, '[^0-9.].*', '') !~ '^(0|1|2[.]([0-9]|1[0-7]))([.]|$)',
       'upgrade to 2.18: older versions can skip new ticks of a batch that repeats a tick of a week ago (timescaledb issue 7672)',
       true
FROM extension WHERE installed IS NOT NULL
UNION ALL
SELECT 'database: timescaledb.license ' || value, value <> 'apache',
       'this license has no columnstore: set it to timescale, with the Community edition', true
FROM settings WHERE name = 'timescaledb.license'
