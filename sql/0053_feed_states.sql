-- A table with the state of each session, and functions for the gaps of a span. With them, queries on the last days, and
-- `verify` with nothing new, take the same time after a year as after a day.

CREATE TABLE feed_states (
    session      bigint      PRIMARY KEY,
    feed         text,
    last_number  bigint      NOT NULL,
    last_seen_at timestamptz NOT NULL,
    stopped      boolean     NOT NULL,
    last_seq     bigint      NOT NULL,
    verified_seq bigint      NOT NULL DEFAULT -1,
    verified     boolean     GENERATED ALWAYS AS (verified_seq >= last_seq) STORED
);
COMMENT ON TABLE feed_states IS 'The newest feed event of each session. Triggers on feed_events and verified_sessions write it.';
COMMENT ON COLUMN feed_states.last_seq IS 'The last sequence number that the producer has reported.';
COMMENT ON COLUMN feed_states.verified_seq IS 'last_seq when the session was verified; -1 if it was not.';
CREATE INDEX feed_states_unverified ON feed_states (session) WHERE NOT verified;
CREATE INDEX feed_states_by_feed ON feed_states (feed, session);

INSERT INTO feed_states (session, feed, last_number, last_seen_at, stopped, last_seq, verified_seq)
SELECT s.session, s.feed, s.last_number, newest.at, newest.event = 'stopped', s.last_seq, coalesce(v.last_seq, -1)
FROM feed_sessions AS s
JOIN feed_events AS newest ON newest.session = s.session AND newest.number = s.last_number
LEFT JOIN verified_sessions AS v ON v.session = s.session;

-- Update the states after an insert. A repeated event changes nothing, and events may arrive in any order.
CREATE FUNCTION note_feed_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO feed_states AS s (session, feed, last_number, last_seen_at, stopped, last_seq)
    SELECT session, max(detail ->> 'feed') FILTER (WHERE event = 'started'), max(number),
           (array_agg(at ORDER BY number DESC))[1], (array_agg(event ORDER BY number DESC))[1] = 'stopped',
           coalesce(max((detail ->> 'last_seq')::bigint) FILTER (WHERE event IN ('alive', 'stopped')), 0)
    FROM inserted GROUP BY session ORDER BY session
    ON CONFLICT (session) DO UPDATE SET
        feed = coalesce(s.feed, EXCLUDED.feed),
        last_number = greatest(s.last_number, EXCLUDED.last_number),
        last_seen_at = CASE WHEN EXCLUDED.last_number > s.last_number THEN EXCLUDED.last_seen_at ELSE s.last_seen_at END,
        stopped = CASE WHEN EXCLUDED.last_number > s.last_number THEN EXCLUDED.stopped ELSE s.stopped END,
        last_seq = greatest(s.last_seq, EXCLUDED.last_seq)
    WHERE EXCLUDED.last_number > s.last_number OR EXCLUDED.last_seq > s.last_seq OR (s.feed IS NULL AND EXCLUDED.feed IS NOT NULL);
    RETURN NULL;
END
$$;
CREATE TRIGGER note_feed_events AFTER INSERT ON feed_events
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION note_feed_events();

CREATE FUNCTION forget_feed_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    DELETE FROM feed_states;
    RETURN NULL;
END
$$;
CREATE TRIGGER forget_feed_events AFTER TRUNCATE ON feed_events FOR EACH STATEMENT EXECUTE FUNCTION forget_feed_events();

CREATE FUNCTION note_verified_session() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        UPDATE feed_states SET verified_seq = -1;
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE feed_states SET verified_seq = -1 WHERE session = OLD.session;
    ELSE
        UPDATE feed_states SET verified_seq = NEW.last_seq WHERE session = NEW.session;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_verified_session AFTER INSERT OR UPDATE OR DELETE ON verified_sessions
    FOR EACH ROW EXECUTE FUNCTION note_verified_session();
CREATE TRIGGER forget_verified_sessions AFTER TRUNCATE ON verified_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION note_verified_session();

-- A consumer's role may have the right to INSERT only. So these triggers run with the rights of their owner. As in 0030, their
-- search_path is fixed, and no other role can attach them to a table.
DO $$
DECLARE
    home text := (SELECT quote_ident(n.nspname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                  WHERE c.oid = 'feed_states'::regclass);
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['note_feed_events', 'forget_feed_events', 'note_verified_session'] LOOP
        EXECUTE format('ALTER FUNCTION %s.%I() SET search_path = %s, pg_temp', home, name, home);
        EXECUTE format('REVOKE ALL ON FUNCTION %s.%I() FROM PUBLIC', home, name);
    END LOOP;
END
$$;

-- The rows of feed_coverage for the sessions from `first` on: of one symbol, or of all. The end of a span is looked up once for
-- each event, not once for each symbol.
CREATE FUNCTION feed_coverage_of(first bigint, one_symbol text DEFAULT NULL)
RETURNS TABLE (session bigint, symbol text, since timestamptz, until timestamptz, ended text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT spans.session, spans.symbol, least(spans.since, spans.until), spans.until, spans.ended
    FROM (
        SELECT started.session,
               subscribed.symbol,
               started.at AS since,
               CASE WHEN started.event = 'refused' THEN started.at
                    WHEN dropped.at IS NOT NULL THEN dropped.at
                    WHEN started.ended_by = 'disconnected' AND started.ending ? 'last_frame'
                        THEN greatest(started.at, timestamptz 'epoch'
                                                  + (started.ending ->> 'last_frame')::bigint * interval '1 microsecond')
                    WHEN started.ended_by IS NOT NULL THEN started.ended_at
                    WHEN started.last_seen_at < clock_timestamp() - report_timeout() THEN started.last_seen_at
                    ELSE 'infinity'
               END AS until,
               CASE WHEN started.event = 'refused' THEN 'refused: ' || subscribed.reason
                    WHEN dropped.at IS NOT NULL THEN 'unsubscribed'
                    WHEN started.ended_by = 'disconnected' THEN 'disconnected: ' || coalesce(started.ending ->> 'cause', '')
                    WHEN started.ended_by IS NOT NULL THEN started.ended_by
                    WHEN started.last_seen_at < clock_timestamp() - report_timeout() THEN 'stopped reporting'
               END AS ended
        FROM (
            SELECT e.session, e.number, e.at, e.event, e.detail, ending.number AS ended_number, ending.event AS ended_by,
                   ending.at AS ended_at, ending.detail AS ending, newest.at AS last_seen_at,
                   EXISTS (SELECT FROM feed_events AS u WHERE u.session = e.session AND u.event = 'unsubscribed') AS drops
            FROM feed_events AS e
            LEFT JOIN LATERAL (
                SELECT later.number, later.event, later.at, later.detail FROM feed_events AS later
                WHERE later.session = e.session AND later.number > e.number AND later.event IN ('disconnected', 'stopped')
                ORDER BY later.number LIMIT 1
            ) AS ending ON true
            CROSS JOIN LATERAL (
                SELECT n.at FROM feed_events AS n WHERE n.session = e.session ORDER BY n.number DESC LIMIT 1
            ) AS newest
            WHERE e.event IN ('subscribed', 'refused') AND e.session >= feed_coverage_of.first
              AND (feed_coverage_of.one_symbol IS NULL OR e.detail -> 'symbols' ? feed_coverage_of.one_symbol)
        ) AS started
        CROSS JOIN LATERAL (
            SELECT value #>> '{}' AS symbol, NULL AS reason FROM jsonb_array_elements(
                CASE WHEN started.event = 'subscribed' THEN started.detail -> 'symbols' ELSE '[]' END)
            UNION ALL
            SELECT key, value
            FROM jsonb_each_text(CASE WHEN started.event = 'refused' THEN started.detail -> 'symbols' ELSE '{}' END)
        ) AS subscribed
        LEFT JOIN LATERAL (
            SELECT u.at FROM feed_events AS u
            WHERE started.drops AND u.session = started.session AND u.event = 'unsubscribed' AND u.number > started.number
              AND (started.ended_number IS NULL OR u.number < started.ended_number)
              AND u.detail -> 'symbols' ? subscribed.symbol
            ORDER BY u.number LIMIT 1
        ) AS dropped ON true
        WHERE feed_coverage_of.one_symbol IS NULL OR subscribed.symbol = feed_coverage_of.one_symbol
    ) AS spans;
END;

-- The rows of feed_gaps for the sessions from `first` on: of one symbol, or of all.
CREATE FUNCTION feed_gaps_of(first bigint, one_symbol text DEFAULT NULL) RETURNS TABLE (symbol text, since timestamptz, until timestamptz, cause text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH covered AS MATERIALIZED (
        SELECT c.symbol, c.since, c.until, c.ended FROM feed_coverage_of(feed_gaps_of.first, feed_gaps_of.one_symbol) AS c
    ), ends AS ( -- blind_since: the latest end of all earlier spans
        SELECT covered.symbol, covered.since, covered.until, covered.ended,
               max(covered.until) OVER (PARTITION BY covered.symbol ORDER BY covered.since, covered.until
                                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS blind_since
        FROM covered
    ), causes AS (
        SELECT covered.symbol, covered.until, min(covered.ended) AS cause FROM covered GROUP BY covered.symbol, covered.until
    ), last AS (
        SELECT DISTINCT ON (covered.symbol) covered.symbol, covered.until, covered.ended
        FROM covered ORDER BY covered.symbol, covered.until DESC, covered.since DESC
    )
    SELECT ends.symbol, ends.blind_since, ends.since, causes.cause
    FROM ends LEFT JOIN causes ON causes.symbol = ends.symbol AND causes.until = ends.blind_since
    WHERE ends.since > ends.blind_since
    UNION ALL
    SELECT last.symbol, last.until, NULL, last.ended FROM last WHERE last.until < 'infinity' AND last.ended <> 'unsubscribed'
    UNION ALL
    SELECT NULL,
           timestamptz 'epoch' + (e.detail ->> 'since')::bigint * interval '1 microsecond',
           timestamptz 'epoch' + (e.detail ->> 'until')::bigint * interval '1 microsecond',
           'overflow: ' || (e.detail ->> 'cause')
    FROM feed_events AS e WHERE e.event = 'overflow' AND e.session >= feed_gaps_of.first
    UNION ALL
    SELECT s.symbol, s.since, s.until, 'venue numbers skipped: ' || s.first_id || ' to ' || s.last_id
    FROM skipped_trades(feed_gaps_of.first) AS s
    WHERE feed_gaps_of.one_symbol IS NULL OR s.symbol = feed_gaps_of.one_symbol;
END;

-- The id from which on sessions must be read to find all gaps that end after `since`. A gap begins at the end of an earlier
-- session, and a session ends at midnight UTC at the latest. So this is the beginning of the last earlier day that has any
-- session. One minute is added because clocks may differ.
CREATE FUNCTION first_session_of(since timestamptz) RETURNS bigint
LANGUAGE sql STABLE
RETURN (SELECT coalesce((SELECT s.session FROM feed_events AS s WHERE s.session < today.midnight ORDER BY s.session DESC LIMIT 1)
                        / 86400000000, 0) * 86400000000 - 60000000
        FROM (SELECT extract(epoch FROM date_trunc('day', greatest(since, timestamptz 'epoch') - interval '1 minute', 'UTC'))::bigint
                     * 1000000 AS midnight) AS today);

CREATE FUNCTION feed_gaps_between("from" timestamptz, "to" timestamptz DEFAULT 'infinity', one_symbol text DEFAULT NULL)
RETURNS TABLE (symbol text, since timestamptz, until timestamptz, cause text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT g.symbol, g.since, g.until, g.cause FROM feed_gaps_of(first_session_of($1), $3) AS g
    WHERE coalesce(g.until, 'infinity') > $1 AND g.since < $2;
END;
COMMENT ON FUNCTION feed_gaps_between IS 'The rows of feed_gaps that overlap a span, in a time that depends on the span only. one_symbol: this symbol, and losses of any. A symbol that no producer has subscribed since some days before it is not included.';

-- As in 0040 and 0003.
CREATE OR REPLACE VIEW feed_coverage AS SELECT session, symbol, since, until, ended FROM feed_coverage_of(0);
CREATE OR REPLACE VIEW feed_gaps AS SELECT symbol, since, until, cause FROM feed_gaps_of(0);

-- As in 0009, but sessions that ended days ago are not read. The sequence number a day ago is interpolated between two reports.
CREATE OR REPLACE VIEW ticks_growth AS
WITH reported AS (
    SELECT s.last_seq AS seq,
           coalesce(before.seq + (after.seq - before.seq) * extract(epoch FROM clock_timestamp() - interval '1 day' - before.at)
                        / nullif(extract(epoch FROM after.at - before.at), 0),
                    before.seq, 0)::bigint AS yesterday
    FROM (SELECT session, last_seq FROM feed_states
          WHERE session > (extract(epoch FROM now() - interval '2 days') * 1e6)::bigint) AS s -- now() is stable: an index scan
    LEFT JOIN LATERAL (
        SELECT seq, at FROM (
            (SELECT (detail ->> 'last_seq')::bigint AS seq, at FROM feed_events AS e
             WHERE e.session = s.session AND event IN ('alive', 'stopped') AND at <= clock_timestamp() - interval '1 day'
             ORDER BY number DESC LIMIT 1)
            UNION ALL
            SELECT 0, to_timestamp(s.session / 1e6) WHERE s.session < extract(epoch FROM clock_timestamp() - interval '1 day') * 1e6
        ) AS either
        ORDER BY at DESC LIMIT 1
    ) AS before ON true
    LEFT JOIN LATERAL (
        SELECT (detail ->> 'last_seq')::bigint AS seq, at FROM feed_events AS e
        WHERE e.session = s.session AND event IN ('alive', 'stopped') AND at > clock_timestamp() - interval '1 day'
        ORDER BY number LIMIT 1
    ) AS after ON true
), facts AS (
    SELECT ticks_size() AS bytes,
           greatest((SELECT coalesce(sum(last_seq), 0) FROM feed_states)
               - (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM feed_expired), 0)::bigint AS rows,
           coalesce(sum(seq - yesterday), 0)::bigint AS added,
           (SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM feed_expired
            WHERE at > clock_timestamp() - interval '1 day') AS dropped,
           coalesce(extract(epoch FROM least(
               clock_timestamp() - to_timestamp((SELECT min(session) FROM feed_states) / 1e6), interval '1 day'
           )), 0)::float8 AS seconds
    FROM reported
)
SELECT bytes, rows, added, dropped, seconds, rows_per_day, rows_per_day * bytes / nullif(rows, 0) AS bytes_per_day
FROM facts
CROSS JOIN LATERAL (
    SELECT CASE WHEN seconds >= 60 THEN added * 86400 / seconds - dropped END AS rows_per_day
) AS growth;

-- The rows of backfill_gaps from a time on.
CREATE FUNCTION backfill_gaps_from("from" timestamptz)
RETURNS TABLE (symbol text, exchange text, since timestamptz, until timestamptz)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH gaps AS MATERIALIZED (
        SELECT g.symbol, g.since, g.until FROM feed_gaps_between($1) AS g
        WHERE coalesce(g.cause, '') NOT LIKE 'venue numbers skipped%'
    ), listed AS (
        SELECT e.detail ->> 'symbol' AS symbol, min(e.detail ->> 'exchange') AS exchange
        FROM feed_events AS e
        WHERE e.event = 'instrument' AND e.session >= first_session_of($1)
          AND e.detail ->> 'exchange' IS NOT NULL AND e.detail ->> 'mic_code' IS NOT NULL
        GROUP BY 1 HAVING count(DISTINCT e.detail ->> 'exchange') = 1
    )
    SELECT blind.symbol, listed.exchange, blind.since, blind.until
    FROM (
        SELECT gaps.symbol, gaps.since, coalesce(gaps.until, clock_timestamp()) AS until
        FROM gaps WHERE gaps.symbol IS NOT NULL
        UNION ALL -- a loss of any symbol concerns each symbol that was covered
        SELECT covered.symbol, greatest(losses.since, covered.since), least(losses.until, covered.until)
        FROM gaps AS losses
        JOIN feed_coverage_of(first_session_of($1)) AS covered
          ON covered.since < covered.until AND covered.since <= losses.until AND covered.until >= losses.since
        WHERE losses.symbol IS NULL
    ) AS blind
    LEFT JOIN listed USING (symbol)
    WHERE blind.until > $1 OR blind.since >= $1;
END;

-- As in 0008.
CREATE OR REPLACE VIEW backfill_gaps AS SELECT symbol, exchange, since, until FROM backfill_gaps_from('-infinity');

-- For queries by session: there may be a million dead letters.
CREATE INDEX dead_letters_by_session ON dead_letters (session, seq) WHERE session IS NOT NULL;
