"""A file of recorded price events."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NoReturn

from common.errors import ConfigurationError
from tickpipe.simulator.random_walk import Event

EXPECTED_LINE = 'expected a line {"at": seconds, "event": {"event": "price", "symbol": …, …}}'


class Capture:
    """Recorded price events in order, read from a file of lines `{"at": seconds, "event": {…}}`.

    Raises ConfigurationError with the file, the line and the expected format.
    """

    def __init__(self, path: Path) -> None:
        self.lines: list[tuple[float, Event]] = []
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    self.lines.append(self._parse(line, f"{path}, line {number}"))
        except OSError as exc:
            raise ConfigurationError(f"cannot read the capture {path}: {exc.strerror}") from exc
        if not self.lines:
            raise ConfigurationError(f"the capture {path} is empty: {EXPECTED_LINE}")
        self._instruments = {event["symbol"].upper(): event for _, event in reversed(self.lines)}

    def instrument(self, symbol: str) -> Event | None:
        """The instrument of a symbol in the capture; None for other symbols."""
        event = self._instruments.get(symbol.upper())
        if event is None:
            return None
        exchange = event.get("exchange", "")
        return {
            "symbol": event["symbol"],
            "exchange": exchange,
            "mic_code": event.get("mic_code", exchange),
            "country": "",
            "type": event.get("type", ""),
        }

    def _parse(self, line: bytes, place: str) -> tuple[float, Event]:
        try:
            entry = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            raise ConfigurationError(f"{place} is not JSON ({exc}); {EXPECTED_LINE}") from exc
        if not isinstance(entry, dict) or not _is_number(entry.get("at")) or not isinstance(entry.get("event"), dict):
            raise ConfigurationError(f"{place}: {EXPECTED_LINE}")
        at, event = entry["at"], entry["event"]
        symbol = event.get("symbol")
        if event.get("event") != "price" or not isinstance(symbol, str) or not symbol:
            raise ConfigurationError(f'{place}: expected a price event: "event": "price" and a "symbol"')
        if not _is_number(event.get("price")) or not _is_number(event.get("timestamp")):
            raise ConfigurationError(f'{place}: expected numbers as "price" and "timestamp"')
        if self.lines and at < self.lines[-1][0]:
            raise ConfigurationError(f'{place}: expected "at" not before the line above ({at} < {self.lines[-1][0]})')
        return at, event


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # JSON 1e999 becomes infinity
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
