-- Backfill (`tickpipe backfill`): the vendor's one-minute bars for minutes with a gap in the feed. They do not
-- change the candles of 0004; candles_1m_filled shows both.

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
COMMENT ON TABLE candles_backfill IS 'The vendor''s one-minute bars for minutes that overlap a gap of the feed.';
COMMENT ON COLUMN candles_backfill.volume IS 'The vendor''s volume; NULL for currencies, which have none.';

-- Spans that the vendor has answered, with bars or without. A closed market or a quiet minute has no bar, and each request
-- costs a credit. A minute is recorded an hour after its end, since its bar may be late. (0040 renames this table.)
CREATE TABLE candles_backfill_asked (
    symbol   text        NOT NULL,
    since    timestamptz NOT NULL,
    until    timestamptz NOT NULL CHECK (until > since),
    asked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, since, until)
);

-- Gaps to request, one row for each symbol. A gap of any symbol counts for each symbol subscribed at that time. exchange is
-- a share's listing, because the vendor could send bars of another listing. (A pair's exchange is only a source of prices.)
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

-- Spans that need no other request.
CREATE VIEW backfill_done AS
SELECT symbol, lower(span) AS since, upper(span) AS until
FROM (
    SELECT symbol, unnest(range_agg(span)) AS span
    FROM (
        SELECT symbol, tstzrange(bucket, bucket + interval '1 minute') AS span FROM candles_backfill
        UNION ALL
        SELECT symbol, tstzrange(since, until) FROM candles_backfill_asked
    ) AS spans
    GROUP BY symbol
) AS spans;

-- candles_1m without gaps: one row for each symbol and minute. A minute that overlaps a gap has the vendor's bar, which is
-- complete, and ticks IS NULL. (DISTINCT ON passes filters on symbol and bucket to both sides; NOT EXISTS would not.)
CREATE VIEW candles_1m_filled AS
SELECT DISTINCT ON (symbol, bucket) symbol, bucket, open, high, low, close, ticks, volume, source
FROM (
    SELECT symbol, bucket, open, high, low, close, ticks, volume, 'ticks' AS source FROM candles_1m
    UNION ALL
    SELECT symbol, bucket, open, high, low, close, NULL, volume, 'backfill' FROM candles_backfill
) AS either
ORDER BY symbol, bucket, source; -- 'backfill' comes first
COMMENT ON VIEW candles_1m_filled IS 'candles_1m, with the vendor''s bars for minutes in gaps. source: ticks or backfill.';
