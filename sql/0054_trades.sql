-- What a feed with trades knows about each of them. The columns are NULL in prices of a feed without trades.
ALTER TABLE prices_real_time ADD COLUMN size double precision;
ALTER TABLE prices_real_time ADD COLUMN side text;
ALTER TABLE prices_real_time ADD COLUMN trade_id bigint;
COMMENT ON COLUMN prices_real_time.size IS 'How much was traded, in units of the base currency or in shares.';
COMMENT ON COLUMN prices_real_time.side IS 'The side of the order that caused the trade: buy or sell.';
COMMENT ON COLUMN prices_real_time.trade_id IS 'The exchange''s own number of the trade, for this symbol.';
