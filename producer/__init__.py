"""Receives Twelve Data's websocket and appends its prices to a Redis stream."""
