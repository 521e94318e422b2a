"""Embedded Valkey and PostgreSQL servers, from wheels."""
