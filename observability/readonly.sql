-- The role that Grafana reads with: it may read the tables of their owner, and change nothing. Compose runs this at each
-- start of the profile `observability`; for a database of yours, run it as the tables' owner, with psql 14 or newer:
--   GRAFANA_PASSWORD=… psql "$DATABASE_URL" -f observability/readonly.sql
-- Running it again takes over a new password, and a new DISK_ALERT_GB for the alert DiskFilling.
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
    -- A temporary table is written even by a role that may change nothing: it could fill the disk. The owner keeps the
    -- right; another role that needs it: GRANT TEMPORARY ON DATABASE … TO …
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$$;
ALTER ROLE tickpipe_reader LOGIN CONNECTION LIMIT 20 PASSWORD :'password';
-- A panel over too long a span must not hold the consumers' database up.
ALTER ROLE tickpipe_reader SET default_transaction_read_only = on;
ALTER ROLE tickpipe_reader SET statement_timeout = '30s';
-- Grafana puts no variables into an alert's SQL: its limit comes with the login.
ALTER ROLE tickpipe_reader SET tickpipe.disk_alert_gb = :'disk_alert_gb';

GRANT USAGE ON SCHEMA public TO tickpipe_reader;
-- The owner's tables and views, no other role's in the same schema.
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
-- Tables to come: the first consumer may not have made any yet.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO tickpipe_reader;
COMMIT;
