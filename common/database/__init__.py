"""Everything that every process needs of PostgreSQL: connections, transactions, errors and migrations."""
