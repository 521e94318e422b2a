"""PostgreSQL and TimescaleDB: connections, transactions, errors by class, and migrations."""
