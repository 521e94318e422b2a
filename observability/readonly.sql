-- Creates the read-only role that Grafana uses. Compose runs this script at each start of the profile `observability`.
-- For your own database, run it as the owner of the tables, with psql 14 or newer:
--   GRAFANA_PASSWORD=… psql "$DATABASE_URL" -f observability/readonly.sql
-- Run it again to change the password, or DISK_ALERT_GB, the limit of the alert DiskFilling.
\set ON_ERROR_STOP on
\getenv password GRAFANA_PASSWORD
\set disk_alert_gb 50
\getenv disk_alert_gb DISK_ALERT_GB

BEGIN;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tickpipe_reader') THEN
        CREATE ROLE tickpipe_reader;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tickpipe_reader'
               AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)) THEN
        RAISE EXCEPTION 'the role tickpipe_reader has more rights than to read: drop it, or take them from it';
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tickpipe_reader', current_database());
    -- A read-only role can still write temporary tables, which could fill the disk. The owner keeps this right. Give
    -- it to another role with GRANT TEMPORARY ON DATABASE … TO …
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$$;
ALTER ROLE tickpipe_reader LOGIN CONNECTION LIMIT 20 PASSWORD :'password';
-- A panel with a long time range must not slow the consumers down.
ALTER ROLE tickpipe_reader SET default_transaction_read_only = on;
ALTER ROLE tickpipe_reader SET statement_timeout = '30s';
-- Grafana does not replace variables in the SQL of alerts, so the limit is a setting of the role.
ALTER ROLE tickpipe_reader SET tickpipe.disk_alert_gb = :'disk_alert_gb';

GRANT USAGE ON SCHEMA public TO tickpipe_reader;
-- Only tables and views of the owner, not those of other roles in the same schema.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM tickpipe_reader;
DO $$
DECLARE
    ours regclass;
BEGIN
    FOR ours IN SELECT c.oid FROM pg_class AS c JOIN pg_roles AS owner ON owner.oid = c.relowner
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
                  AND owner.rolname = current_user
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO tickpipe_reader', ours);
    END LOOP;
END
$$;
-- Future tables too: the first consumer may not have created any yet.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO tickpipe_reader;
COMMIT;
