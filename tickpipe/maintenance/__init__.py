"""Changes stored data on request: retention and dead letters."""
