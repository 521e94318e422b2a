-- outside a transaction: a refresh cannot run in one. Where the ticks are older than their aggregates, the policies
-- would do this too, a minute later.
CALL refresh_continuous_aggregate('aggregate_1m', NULL, NULL);
CALL refresh_continuous_aggregate('aggregate_1h', NULL, NULL);
CALL refresh_continuous_aggregate('aggregate_1d', NULL, NULL);
