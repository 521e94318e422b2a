-- outside a transaction: a refresh cannot run in one. If a table with ticks becomes a hypertable, this fills
-- the aggregates at once. The policies would do it a minute later.
CALL refresh_continuous_aggregate('aggregate_1m', NULL, NULL);
CALL refresh_continuous_aggregate('aggregate_1h', NULL, NULL);
CALL refresh_continuous_aggregate('aggregate_1d', NULL, NULL);
