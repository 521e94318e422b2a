"""Moves ticks between the database and tables or files of others, and archives them."""
