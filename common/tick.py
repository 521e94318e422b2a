"""A tick: one price event as the producer appends it and a consumer inserts it. Pure.

Every value is the text that the vendor sent; an absent value is "". The database converts and validates the values.
"""

from __future__ import annotations

from typing import NamedTuple

from common.codec import Codec
from common.number import is_bigint, is_finite

#: Valid range of `time`, in seconds since 1970: 1970-01-01 to 2100-01-01. A time in milliseconds is far outside.
TIME_RANGE = (0, 4_102_444_800)
#: Maximum number of characters in a symbol and in an exchange. A symbol has at least one.
MAX_NAME = 64


class Tick(NamedTuple):
    """The fields of a stream entry, in its order. Each is text; an absent value is ``""``.

    `session` and `seq` identify the tick: the start of the producer's run (microseconds since 1970) and the number of
    the event in it (1, 2, 3 and so on). `time` is the exchange's, in seconds UTC. `received` is the producer's, in
    microseconds UTC, strictly increasing within a session. `day_volume` accumulates over the day.

    The last three are those of a trade, if the feed has trades: its `size`, the `side` of the order that caused it
    (``"buy"`` or ``"sell"``), and the exchange's own number of it for this symbol.
    """

    session: str
    seq: str
    symbol: str
    time: str
    price: str
    day_volume: str
    bid: str
    ask: str
    exchange: str
    received: str
    size: str = ""
    side: str = ""
    trade_id: str = ""


#: Fields that an entry of a feed without trades does not have.
TRADE_FIELDS = ("size", "side", "trade_id")
CODEC = Codec("tick", Tick, Tick._fields, optional=len(TRADE_FIELDS))
#: The fields that hold integers, and those that hold numbers.
INTEGERS = ("session", "seq", "received", "trade_id")
NUMBERS = ("time", "price", "day_volume", "bid", "ask", "size")
SIDES = ("", "buy", "sell")
encode = CODEC.encode
decode = CODEC.decode


def validation_error(tick: Tick) -> str | None:
    """Why this tick cannot be stored, with field and value; None if the database must decide.

    Called only for batches that the database has refused. It must accept every tick that the database accepts.
    """
    for name in INTEGERS:
        if not is_bigint(getattr(tick, name)) and (getattr(tick, name) or name not in TRADE_FIELDS):
            return f"{name} is not a whole number of 64 bits: {_quote(getattr(tick, name))}"
    return _name_error(tick) or _number_error(tick)


def _name_error(tick: Tick) -> str | None:
    if not 1 <= len(tick.symbol) <= MAX_NAME:
        return f"symbol does not have 1 to {MAX_NAME} characters: {_quote(tick.symbol)}"
    if len(tick.exchange) > MAX_NAME:
        return f"exchange is longer than {MAX_NAME} characters: {_quote(tick.exchange)}"
    if tick.side not in SIDES:
        return f"side is neither buy nor sell: {_quote(tick.side)}"
    return None


def _number_error(tick: Tick) -> str | None:
    for name in ("time", "price"):
        if not getattr(tick, name):
            return f"{name} is missing"
    for name in NUMBERS:
        if getattr(tick, name) and not is_finite(getattr(tick, name)):
            return f"{name} is not a finite number: {_quote(getattr(tick, name))}"
    if not TIME_RANGE[0] - 1 < float(tick.time) < TIME_RANGE[1]:  # the database rounds first: -1e-7 is 1970
        return f"time is not between 1970 and 2100 (expected: seconds since 1970): {_quote(tick.time)}"
    return None


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
