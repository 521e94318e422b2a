"""Redis stream → TimescaleDB, one block, one transaction."""
