-- A producer with several channels has a session for each. What happens to its connection is recorded in each of them.

-- Each outage once, with all symbols that it concerned. Symbols that were subscribed again at the same moment had one outage:
-- of a producer that was killed, the sessions need not end with the same event.
CREATE VIEW feed_outages AS
SELECT min(since) AS since, until, cause, array_agg(symbol ORDER BY symbol) FILTER (WHERE symbol IS NOT NULL) AS symbols
FROM feed_gaps
WHERE coalesce(cause, '') NOT LIKE 'venue numbers skipped%'
GROUP BY until, cause, CASE WHEN until IS NULL THEN date_bin('1 minute', since, timestamptz 'epoch')
                            WHEN symbol IS NULL THEN since END;
COMMENT ON VIEW feed_outages IS 'Gaps, as in feed_gaps, but one row for all symbols that one outage concerned, and without single trades that an exchange skipped. symbols is NULL for a loss of any symbol.';
