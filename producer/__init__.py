"""Twelve Data's websocket → Redis stream."""
