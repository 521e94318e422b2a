"""Answers of the REST call `time_series`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from tickpipe.simulator.bars import bars_between
from tickpipe.simulator.random_walk import Event

logger = logging.getLogger(__name__)


def _error(code: int, message: str) -> tuple[int, Event]:
    """The HTTP status and the body of an error of Twelve Data's REST interface."""
    return code, {"code": code, "message": message, "status": "error"}


def _asked_for(params: Mapping[str, str], symbol: str, now: float) -> list[Event]:
    """One-minute bars, of UTC, up to the one that is not complete yet. Raises KeyError, ValueError."""
    for name, only in {"interval": "1min", "timezone": "UTC"}.items():
        if params[name] != only:
            raise ValueError(f"{name}={params[name]}: the simulator has {only} alone")
    since, until = (datetime.fromisoformat(params[name]).replace(tzinfo=UTC) for name in ("start_date", "end_date"))
    size = int(params.get("outputsize", "5000"))
    if not 1 <= size <= 5000:
        raise ValueError(f"outputsize={size}")
    until = min(until, datetime.fromtimestamp(now, UTC))
    bars = bars_between(symbol, max(since, until - timedelta(minutes=size)), until)[-size:]
    return bars if params.get("order", "desc").lower() == "asc" else bars[::-1]
