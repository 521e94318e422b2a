-- A producer with several channels has a session for each one, and records events of its connection in each session.

-- One row for each outage, with all its symbols. Gaps with the same cause that end at the same time are one outage. Their
-- beginnings can differ: if a producer is killed, the last reports of its sessions are from different times. Open gaps with
-- the same cause are one outage if they began within the same minute.
CREATE VIEW feed_outages AS
SELECT min(since) AS since, until, cause, array_agg(symbol ORDER BY symbol) FILTER (WHERE symbol IS NOT NULL) AS symbols
FROM feed_gaps
WHERE coalesce(cause, '') NOT LIKE 'venue numbers skipped%'
GROUP BY until, cause, CASE WHEN until IS NULL THEN date_bin('1 minute', since, timestamptz 'epoch')
                            WHEN symbol IS NULL THEN since END;
COMMENT ON VIEW feed_outages IS 'Gaps, as in feed_gaps, but one row for all symbols that one outage concerned, and without single trades that an exchange skipped. symbols is NULL for a loss of any symbol.';
