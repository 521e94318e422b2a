"""The columns of rows that did not come from tickpipe, and the ticks that they become. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from common.errors import ConfigurationError
from common.number import is_bigint, is_finite
from common.tick import MAX_NAME, SIDES, TIME_RANGE, Tick, validation_error

#: A table or file of ticks has these columns, and may have the optional ones. All names are those of prices_real_time.
REQUIRED = ("time", "symbol", "price")
OPTIONAL = ("day_volume", "bid", "ask", "exchange", "size", "side", "trade_id")
COLUMNS = REQUIRED + OPTIONAL
#: Numbers below these limits are seconds, milliseconds, microseconds and nanoseconds since 1970. Microseconds in each.
_UNITS = (
    (Decimal("1e11"), Decimal(1_000_000)),
    (Decimal("1e14"), Decimal(1000)),
    (Decimal("1e17"), Decimal(1)),
    (Decimal("1e20"), Decimal("0.001")),
)
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

#: A row as text, in the order of COLUMNS; None is NULL. The time is microseconds since 1970; other texts are invalid.
Row = Sequence[str | None]


#: The reason if a time cannot be read.
NO_TIME = "time is neither ISO 8601 nor a number since 1970"


class NewTick(NamedTuple):
    """A tick without session and seq. `time`: microseconds since 1970."""

    time: int
    symbol: str
    price: float
    day_volume: float | None
    bid: float | None
    ask: float | None
    exchange: str | None
    size: float | None
    side: str | None
    trade_id: int | None


class InvalidRowError(ValueError):
    """A row that is not a tick. The text is the reason, without the value."""


def read_columns(text: str) -> dict[str, str]:
    """Parse `time=ts,price=last`: the source's name of each column. Raises ConfigurationError."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = (word.strip() for word in part.partition("="))
        if not equals or not theirs or ours not in COLUMNS or ours in found:
            raise ConfigurationError(
                f"--columns {part!r}: write OURS=THEIRS once for each column, for example time=ts,price=last. Ours are "
                + ", ".join(COLUMNS)
            )
        found[ours] = theirs
    return found


def choose_columns(names: Sequence[str], wanted: Mapping[str, str], source: str, *, symbol: str = "") -> dict[str, str]:
    """The source's name of each of our columns that it has. `symbol`: the symbol of all rows, if it has no column.

    Raises ConfigurationError for a missing column.
    """
    chosen = {ours: wanted.get(ours, ours) for ours in COLUMNS if ours in wanted or ours in names}
    needed = [ours for ours in REQUIRED if not (ours == "symbol" and symbol)]
    missing = [*(ours for ours in needed if ours not in chosen), *(set(chosen.values()) - set(names))]
    if missing:
        raise ConfigurationError(
            f"{source} has no column {missing[0]!r}. It has: {', '.join(names) or 'none'}. Name its columns with "
            "--columns, for example --columns time=ts,price=last"
        )
    return chosen


def to_micros(text: str) -> str:
    """Microseconds since 1970, for a row. Another text than a date and time is returned as it is.

    `text`: ISO 8601, in UTC unless it has an offset, or a number since 1970: by its size in seconds, milliseconds,
    microseconds or nanoseconds.
    """
    try:
        if re.fullmatch(r"[0-9.eE+]+", text):
            number = Decimal(text)
            return str(int(number * next(factor for limit, factor in _UNITS if number < limit)))
        moment = datetime.fromisoformat(text)
    except (ArithmeticError, ValueError, StopIteration):
        return f"{NO_TIME}: {text}"
    return str(((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND)


def to_tick(row: Row) -> NewTick:
    """The tick. Raises InvalidRowError, with the reason that `tickpipe` gives for a dead letter."""
    texts = [text or "" for text in row]
    time, symbol, price, day_volume, bid, ask, exchange, size, side, trade_id = texts
    valid = (
        re.fullmatch("[0-9]{1,16}", time)
        and int(time) < TIME_RANGE[1] * 1_000_000
        and 0 < len(symbol) <= MAX_NAME
        and len(exchange) <= MAX_NAME
        and "\0" not in symbol + exchange
        and side in SIDES
        and is_finite(price)
        and all(is_finite(text) for text in (day_volume, bid, ask, size) if text)
        and (not trade_id or is_bigint(trade_id))
    )
    if not valid:
        raise InvalidRowError(_reason(texts))
    return NewTick(
        int(time), symbol, float(price), _number(day_volume), _number(bid), _number(ask), exchange or None,
        _number(size), side or None, int(trade_id) if trade_id else None,
    )  # fmt: skip


def _number(text: str) -> float | None:
    return float(text) if text else None


def _reason(texts: Sequence[str]) -> str:
    """Why the row is not a tick."""
    time, values = texts[0], dict(zip(COLUMNS[1:], texts[1:], strict=True))
    if not time:
        return "time is missing"
    if not values["symbol"]:
        return "symbol is missing"
    if not re.fullmatch("-?[0-9]{1,18}", time):
        return NO_TIME if time.startswith(NO_TIME) else "time is not between 1970 and 2100"
    if any("\0" in text for text in texts):
        return "a text has a NUL character"
    seconds = f"{int(time) // 1_000_000}.{int(time) % 1_000_000:06d}"
    error = validation_error(Tick("0", "0", time=seconds, received="0", **values))
    return re.split(r":| \(", error or "the row is not a tick")[0]
