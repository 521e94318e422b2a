"""Replies to the REST call `time_series`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from tickpipe.simulator.bars import bars_between
from tickpipe.simulator.protocol import FindInstrument, is_listed_on
from tickpipe.simulator.random_walk import Event

#: An HTTP status and the JSON body.
Reply = tuple[int, Event]

KEY_REFUSED = (
    "**apikey** parameter is incorrect or not specified. "
    "You can get your free API key instantly following this link: https://twelvedata.com/pricing. "
    "If you believe that everything is correct, you can contact us at https://twelvedata.com/contact/customer"
)


class Credits:
    """Counts REST calls per period of the clock, in seconds. None disables the limit."""

    def __init__(self, limit: int | None, period: int = 60) -> None:
        self.limit = limit
        self._length = period
        self._period = self._used = 0

    def spend(self, now: float) -> int:
        """Count a call at `now`, in seconds since 1970. Returns the calls in this period."""
        period = int(now // self._length)
        self._period, self._used = period, self._used + 1 if period == self._period else 1
        return self._used


def refused_key() -> Reply:
    """The reply to a wrong API key."""
    return _error(401, KEY_REFUSED)


def out_of_credits(used: int, limit: int) -> Reply:
    """The reply to a call beyond the limit."""
    return _error(
        429,
        f"You have run out of API credits for the current minute. {used} API credits were used, "
        f"with the current limit being {limit}. Wait for the next minute.",
    )


def time_series(params: Mapping[str, str], find: FindInstrument, now: float) -> Reply:
    """The reply to `time_series`; `now` is in seconds since 1970."""
    symbol, _, exchange = params.get("symbol", "").partition(":")
    instrument = find(symbol)
    if instrument is None or not is_listed_on(instrument, params.get("exchange") or exchange or None):
        message = f"**symbol** not found: {symbol}. Please specify it correctly according to API Documentation."
        return _error(404, message)
    try:
        bars = _bars(params, instrument["symbol"], now)
    except (KeyError, ValueError) as exc:
        return _error(400, f"a parameter is missing or wrong: {exc}")
    if not bars:
        return _error(400, "No data is available on the specified dates. Try setting different start/end dates.")
    meta = {
        "symbol": instrument["symbol"],
        "interval": "1min",
        "exchange": instrument["exchange"],
        "type": instrument["type"],
    }
    return HTTPStatus.OK, {"meta": meta, "values": bars, "status": "ok"}


def _error(code: int, message: str) -> Reply:
    return code, {"code": code, "message": message, "status": "error"}


def _bars(params: Mapping[str, str], symbol: str, now: float) -> list[Event]:
    """One-minute bars in UTC. The last one may be of the current minute. Raises KeyError, ValueError."""
    for name, only in {"interval": "1min", "timezone": "UTC"}.items():
        if params[name] != only:
            raise ValueError(f"{name}={params[name]}: the simulator supports only {only}")
    since, until = (datetime.fromisoformat(params[name]).replace(tzinfo=UTC) for name in ("start_date", "end_date"))
    size = int(params.get("outputsize", "5000"))
    if not 1 <= size <= 5000:
        raise ValueError(f"outputsize={size}: expected 1 to 5000")
    until = min(until, datetime.fromtimestamp(now, UTC))
    bars = bars_between(symbol, max(since, until - timedelta(minutes=size)), until)[-size:]
    return bars if params.get("order", "desc").lower() == "asc" else bars[::-1]
