"""A tick: one price event on its way from the producer to the database. Pure.

Each value is text as the feed sent it. Only the database converts it to a number. An empty string is a missing value.
"""

from __future__ import annotations

from typing import NamedTuple

from common.codec import Codec
from common.number import is_bigint, is_finite

#: Valid `time`, seconds since 1970: 1970-01-01 to 2100-01-01. A time in milliseconds is outside this range.
TIME_RANGE = (0, 4_102_444_800)
#: Characters in a symbol (at least one) and in an exchange.
MAX_NAME = 64


class Tick(NamedTuple):
    """One price event. The fields are those of a stream entry, in its order; each is text, absent is ``""``.

    `session` and `seq` are the tick's identity: the producer's run (its start, microseconds since 1970) and the
    number of the event in it (1, 2, 3 …). `time` is the exchange's (seconds UTC), `received` the producer's
    (microseconds UTC, strictly increasing within a session). `day_volume` is cumulative over the day.
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


CODEC = Codec("tick", Tick, Tick._fields)
#: The fields that are integers, and those that are numbers.
INTEGERS = ("session", "seq", "received")
NUMBERS = ("time", "price", "day_volume", "bid", "ask")
encode = CODEC.encode
decode = CODEC.decode


def validation_error(tick: Tick) -> str | None:
    """Why this tick cannot be stored, with field and value; None if it may be valid. The database has more checks.

    Called only if a batch has been rejected. It must accept each entry that would be stored in a batch without errors.
    """
    for name in INTEGERS:
        if not is_bigint(getattr(tick, name)):
            return f"{name} is not a 64-bit integer: {_quote(getattr(tick, name))}"
    if not 1 <= len(tick.symbol) <= MAX_NAME:
        return f"symbol is not of 1 to {MAX_NAME} characters: {_quote(tick.symbol)}"
    if len(tick.exchange) > MAX_NAME:
        return f"exchange is longer than {MAX_NAME} characters: {_quote(tick.exchange)}"
    for name in ("time", "price"):
        if not getattr(tick, name):
            return f"{name} is missing"
    for name in NUMBERS:
        if getattr(tick, name) and not is_finite(getattr(tick, name)):
            return f"{name} is not a finite number: {_quote(getattr(tick, name))}"
    if not TIME_RANGE[0] - 1 < float(tick.time) < TIME_RANGE[1]:  # it rounds first: -1e-7 is 1970
        return f"time is not between 1970 and 2100 (seconds since 1970 are meant): {_quote(tick.time)}"
    return None


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
