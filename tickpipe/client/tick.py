"""A tick in Python, from a row or from a stream entry. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from common import tick as stream_tick
from common.errors import DecodeError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: PostgreSQL counts times from here; the same origin gives the same rounding.
_ORIGIN, _ORIGIN_SECONDS = datetime(2000, 1, 1, tzinfo=UTC), 946_684_800.0


class Tick(NamedTuple):
    """One price event, with the columns of `Database.ticks`. Times are in UTC.

    `time` is the exchange's, `received_at` the producer's. (session, seq) identifies the tick. `size`, `side` and
    `trade_id` are those of a trade.
    """

    time: datetime
    symbol: str
    price: float
    day_volume: float | None
    bid: float | None
    ask: float | None
    exchange: str | None
    size: float | None
    side: str | None
    trade_id: int | None
    received_at: datetime
    session: int
    seq: int
    source: str | None


def read_tick(fields: Mapping[bytes, bytes]) -> Tick | None:
    """The tick in a stream entry, as a consumer stores it; None for a dead letter."""
    try:
        raw = stream_tick.decode(fields)
    except DecodeError:
        return None
    if stream_tick.validation_error(raw):
        return None
    try:
        return _converted(raw)
    except OverflowError:  # received in a year that Python does not know
        return None


def _converted(raw: stream_tick.Tick) -> Tick:
    return Tick(
        time=_ORIGIN + timedelta(microseconds=round((float(raw.time) - _ORIGIN_SECONDS) * 1e6)),
        symbol=raw.symbol,
        price=float(raw.price),
        day_volume=_number(raw.day_volume),
        bid=_number(raw.bid),
        ask=_number(raw.ask),
        exchange=raw.exchange or None,
        size=_number(raw.size),
        side=raw.side or None,
        trade_id=int(raw.trade_id) if raw.trade_id else None,
        received_at=_EPOCH + timedelta(microseconds=int(raw.received)),
        session=int(raw.session),
        seq=int(raw.seq),
        source=None,
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
