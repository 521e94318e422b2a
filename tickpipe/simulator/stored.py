"""Stored ticks as the price events of a replay."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from tickpipe.inspect.past import COLUMNS, read_past
from tickpipe.simulator.random_walk import Event

#: The fields of a price event, as Twelve Data sends them, that a tick has.
_FIELDS = ("symbol", "exchange", "price", "bid", "ask", "day_volume")
_INSTRUMENTS = "SELECT symbol, coalesce(exchange, ''), coalesce(mic_code, ''), coalesce(type, '') FROM instruments"


class StoredPrices:
    """The ticks of a span in the order of their receipt, for a simulator. It reads a portion at a time."""

    def __init__(self, database: DatabaseClient, since: datetime, until: datetime) -> None:
        """Raises OutageError, and ConfigurationError if the span has no ticks."""
        with database.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(_INSTRUMENTS)
            self._instruments = {
                symbol.upper(): {
                    "symbol": symbol, "exchange": exchange, "mic_code": mic_code, "country": "", "type": kind,
                }
                for symbol, exchange, mic_code, kind in cursor.fetchall()
            }  # fmt: skip
        self._portions = read_past(database, since, until, None)
        self._first = next(self._portions, None)
        if self._first is None:
            raise ConfigurationError(
                f"no ticks are stored from {since:%Y-%m-%dT%H:%M:%SZ} to {until:%Y-%m-%dT%H:%M:%SZ}"
            )

    def instrument(self, symbol: str) -> Event | None:
        """The instrument of a symbol; None if no producer has ever received it."""
        return self._instruments.get(symbol.upper())

    @property
    def lines(self) -> Iterator[tuple[float, Event]]:
        """Each event with the time of its receipt in seconds since 1970. They can be read once."""
        portion = self._first
        while portion:
            yield from map(self._event, portion)
            portion = next(self._portions, None)

    def _event(self, row: tuple[Any, ...]) -> tuple[float, Event]:
        tick = dict(zip(COLUMNS, row, strict=True))
        instrument = self.instrument(tick["symbol"]) or {}
        values = {name: tick[name] for name in _FIELDS if tick[name] is not None}
        kind = {"type": instrument["type"]} if instrument.get("type") else {}
        return tick["received_at"].timestamp(), {
            "event": "price", "timestamp": tick["time"].timestamp(), **values, **kind,
        }  # fmt: skip
