-- Ticks. The first four columns are those of the TimescaleDB tutorial for Twelve Data. Crypto volumes are fractional.
-- (session, seq) identifies a tick. With symbol and time before it, one index serves deduplication and queries by symbol
-- and time. (A hypertable's unique index must contain time.)
CREATE TABLE prices_real_time (
    time        timestamptz      NOT NULL CHECK (time >= '1970-01-01 00:00:00+00' AND time < '2100-01-01 00:00:00+00'),
    symbol      text             NOT NULL CHECK (char_length(symbol) BETWEEN 1 AND 64),
    price       double precision NOT NULL CHECK (price > '-Infinity' AND price < 'Infinity'),
    day_volume  double precision          CHECK (day_volume > '-Infinity' AND day_volume < 'Infinity'),
    bid         double precision          CHECK (bid > '-Infinity' AND bid < 'Infinity'),
    ask         double precision          CHECK (ask > '-Infinity' AND ask < 'Infinity'),
    exchange    text                      CHECK (char_length(exchange) <= 64),
    received_at timestamptz      NOT NULL,
    session     bigint           NOT NULL,
    seq         bigint           NOT NULL,
    PRIMARY KEY (symbol, time, session, seq)
);
COMMENT ON TABLE prices_real_time IS 'One row for each price event, as received.';
COMMENT ON COLUMN prices_real_time.time IS 'The exchange''s time, whole seconds. Not unique: many ticks share a second.';
COMMENT ON COLUMN prices_real_time.day_volume IS 'Cumulative over the day, not the tick''s size.';
COMMENT ON COLUMN prices_real_time.received_at IS 'When the producer received it. Strictly increasing within a session, so it is the order of ticks.';
COMMENT ON COLUMN prices_real_time.session IS 'A run of a producer on one UTC day: its start in microseconds since 1970.';
COMMENT ON COLUMN prices_real_time.seq IS 'Number of the price event in its session: 1, 2, 3 …';

-- Feed events as the producer reported them. Append-only. Sessions, gaps and instruments are views of it.
CREATE TABLE feed_events (
    session bigint      NOT NULL CHECK (session BETWEEN 0 AND 4102444800000000), -- microseconds, up to 2100
    number  bigint      NOT NULL CHECK (number > 0),
    at      timestamptz NOT NULL,
    event   text        NOT NULL,
    detail  jsonb       NOT NULL CHECK (jsonb_typeof(detail) = 'object'),
    PRIMARY KEY (session, number),
    -- Values that the views cast: one malformed event must not break a view.
    CHECK (coalesce(detail ->> 'last_seq', '0') ~ '^[0-9]{1,18}$' AND coalesce(detail ->> 'first_seq', '0') ~ '^[0-9]{1,18}$'
           AND coalesce(detail ->> 'continues', '0') ~ '^[0-9]{1,18}$' AND coalesce(detail ->> 'last_frame', '0') ~ '^[0-9]{1,16}$'
           AND coalesce(detail ->> 'since', '0') ~ '^[0-9]{1,16}$' AND coalesce(detail ->> 'until', '0') ~ '^[0-9]{1,16}$'),
    CHECK (coalesce(jsonb_typeof(detail -> 'time_min'), 'number') = 'number'
           AND coalesce(jsonb_typeof(detail -> 'time_max'), 'number') = 'number'),
    CHECK (event NOT IN ('subscribed', 'unsubscribed') OR coalesce(jsonb_typeof(detail -> 'symbols'), '') = 'array'),
    CHECK (event <> 'refused' OR coalesce(jsonb_typeof(detail -> 'symbols'), '') = 'object')
);
COMMENT ON TABLE feed_events IS 'started, connected, subscribed, refused, instrument, disconnected, overflow, alive, stopped.';

-- Entries that could not be stored, and why. raw: the entry's field names and values in turn, byte for byte.
CREATE TABLE dead_letters (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream   text        NOT NULL,
    entry_id text        NOT NULL,
    session  bigint,
    seq      bigint,
    reason   text        NOT NULL,
    raw      bytea[]     NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX dead_letters_by_seq ON dead_letters (stream, session, seq) WHERE session IS NOT NULL AND seq IS NOT NULL;
CREATE UNIQUE INDEX dead_letters_by_entry ON dead_letters (stream, entry_id) WHERE session IS NULL OR seq IS NULL;
