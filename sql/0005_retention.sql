-- Retention: old ticks are deleted, their candles stay, and `verify` knows what was deleted. To switch it on:
-- `tickpipe retention --ticks 90d`.

-- The sequence numbers of deleted ticks.
CREATE TABLE feed_expired (
    session   bigint      NOT NULL,
    first_seq bigint      NOT NULL,
    last_seq  bigint      NOT NULL CHECK (last_seq >= first_seq),
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session, first_seq, last_seq)
);

-- Delete the ticks before a time (rounded down to a UTC day) in the caller's transaction, record their numbers and keep
-- their candles. The lock keeps out writers, so that the record matches the deletion. The search path is fixed, because a job uses
-- its owner's, which may lack this schema.
CREATE PROCEDURE expire_ticks(before timestamptz)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    since timestamptz;
    until timestamptz := date_trunc('day', before, 'UTC');
BEGIN
    IF until > now() THEN
        RAISE EXCEPTION 'ticks of today and later are not dropped: % is not over', before;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'expire_ticks needs READ COMMITTED: what was committed while it waited for its lock must be seen';
    END IF;
    LOCK TABLE prices_real_time IN SHARE ROW EXCLUSIVE MODE;
    since := candles_horizon();
    -- (Ticks that were deleted before and delivered again are on record already.)
    INSERT INTO feed_expired (session, first_seq, last_seq)
        SELECT session, min(seq), max(seq)
        FROM (SELECT session, seq, seq - row_number() OVER (PARTITION BY session ORDER BY seq) AS island
              FROM (SELECT DISTINCT session, seq FROM prices_real_time AS p
                    WHERE time < until
                      AND (time >= since OR NOT EXISTS (
                          SELECT FROM feed_expired AS e
                          WHERE e.session = p.session AND p.seq BETWEEN e.first_seq AND e.last_seq))) AS numbers) AS numbers
        GROUP BY session, island
        ON CONFLICT DO NOTHING;
    IF until > since THEN
        INSERT INTO candles_kept SELECT * FROM tick_minutes(since, until);
        INSERT INTO candles_horizon (at) VALUES (until) ON CONFLICT (one) DO UPDATE SET at = EXCLUDED.at;
        -- From the minutes just kept: a continuous aggregate may lack a late tick.
        INSERT INTO candles_kept SELECT * FROM larger_bars('1h', since, until);
        INSERT INTO candles_kept SELECT * FROM larger_bars('1d', since, until);
    END IF;
    CALL drop_ticks(until);
END
$$;

-- TimescaleDB has its own version (0006), which drops whole chunks.
CREATE PROCEDURE drop_ticks(before timestamptz)
LANGUAGE sql
BEGIN ATOMIC
    DELETE FROM prices_real_time WHERE time < before;
END;
