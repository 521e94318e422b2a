-- Backfill: the vendor's one-minute bars for the minutes in which the feed was blind (`tickpipe backfill`). The candles
-- of 0004 stay what the ticks say; what was bought afterwards lies beside them, and candles_1m_filled shows both.

CREATE TABLE candles_backfill (
    symbol     text             NOT NULL CHECK (char_length(symbol) BETWEEN 1 AND 64),
    bucket     timestamptz      NOT NULL CHECK (bucket >= '1970-01-01 00:00:00+00' AND bucket < '2100-01-01 00:00:00+00'
                                                AND bucket = whole_minute(bucket)),
    open       double precision NOT NULL CHECK (open > '-Infinity' AND open < 'Infinity'),
    high       double precision NOT NULL CHECK (high > '-Infinity' AND high < 'Infinity'),
    low        double precision NOT NULL CHECK (low > '-Infinity' AND low < 'Infinity'),
    close      double precision NOT NULL CHECK (close > '-Infinity' AND close < 'Infinity'),
    volume     double precision          CHECK (volume > '-Infinity' AND volume < 'Infinity'),
    fetched_at timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, bucket)
);
COMMENT ON TABLE candles_backfill IS 'The vendor''s one-minute bars, of minutes that a gap of the feed touches.';
COMMENT ON COLUMN candles_backfill.volume IS 'As the vendor says; NULL where it says none (currencies).';

-- The spans that the vendor has answered for, whether with bars or without: a closed market has none, and a quiet
-- minute has none, and to ask for them again would cost a credit each time. A minute is entered an hour after its end,
-- not sooner, since a bar may come late.
CREATE TABLE candles_backfill_requests (
    symbol   text        NOT NULL,
    since    timestamptz NOT NULL,
    until    timestamptz NOT NULL CHECK (until > since),
    asked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, since, until)
);

-- What is to be asked for: the gaps, one symbol a row; those of any symbol count for all that were covered then. exchange
-- is where a share is listed, since the vendor would else give the bars of another listing. (Not for pairs, whose exchange
-- is where the feed has its prices from.)
CREATE VIEW backfill_gaps AS
WITH gaps AS (
    SELECT symbol, since, coalesce(until, clock_timestamp()) AS until FROM feed_gaps
)
SELECT gaps.symbol, listed.exchange, gaps.since, gaps.until
FROM (
    SELECT symbol, since, until FROM gaps WHERE symbol IS NOT NULL
    UNION ALL
    SELECT covered.symbol, greatest(gaps.since, covered.since), least(gaps.until, covered.until)
    FROM gaps
    JOIN feed_coverage AS covered
      ON covered.since < covered.until AND covered.since <= gaps.until AND covered.until >= gaps.since
    WHERE gaps.symbol IS NULL
) AS gaps
LEFT JOIN (
    SELECT symbol, min(exchange) AS exchange FROM instruments WHERE exchange IS NOT NULL AND mic_code IS NOT NULL
    GROUP BY symbol HAVING count(DISTINCT exchange) = 1
) AS listed USING (symbol);

-- What is not to be asked for again.
CREATE VIEW backfill_done AS
SELECT symbol, lower(span) AS since, upper(span) AS until
FROM (
    SELECT symbol, unnest(range_agg(span)) AS span
    FROM (
        SELECT symbol, tstzrange(bucket, bucket + interval '1 minute') AS span FROM candles_backfill
        UNION ALL
        SELECT symbol, tstzrange(since, until) FROM candles_backfill_requests
    ) AS spans
    GROUP BY symbol
) AS spans;

-- One row a symbol and minute, without the holes. A minute that a gap touches was backfilled, and there the vendor's bar
-- is shown: it is complete, the one of the ticks at the gap's edge is not. Its ticks are NULL. (DISTINCT ON lets filters
-- on symbol and bucket through to both sides; NOT EXISTS would keep the one on bucket from the second.)
CREATE VIEW candles_1m_filled AS
SELECT DISTINCT ON (symbol, bucket) symbol, bucket, open, high, low, close, ticks, volume, source
FROM (
    SELECT symbol, bucket, open, high, low, close, ticks, volume, 'ticks' AS source FROM candles_1m
    UNION ALL
    SELECT symbol, bucket, open, high, low, close, NULL, volume, 'backfill' FROM candles_backfill
) AS either
ORDER BY symbol, bucket, source; -- 'backfill' comes first
COMMENT ON VIEW candles_1m_filled IS 'candles_1m, and the vendor''s bars where the feed was blind. source: ticks or backfill.';
