"""Plans REST calls for gaps. Pure. A minute is an integer: minutes since 1970, UTC."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tickpipe.ranges import Range, difference

#: Maximum number of bars in one answer of the vendor.
MAX_BARS = 5000
#: Minutes after which a missing bar is final.
BAR_FINAL_AFTER = 60

_EPOCH, _MINUTE = datetime(1970, 1, 1, tzinfo=UTC), timedelta(minutes=1)
_LAST_MINUTE = 1 << 40


class Gap(NamedTuple):
    """A time without prices of a symbol. `exchange` is the exchange of a share."""

    symbol: str
    exchange: str | None
    since: datetime
    until: datetime


class Call(NamedTuple):
    """One REST call, which costs one credit. It covers the first to the last wanted minute; other bars are ignored."""

    symbol: str
    exchange: str | None
    wanted: tuple[Range, ...]

    @property
    def since(self) -> datetime:
        """Start of the first minute."""
        return moment(self.wanted[0].first)

    @property
    def until(self) -> datetime:
        """End of the last minute."""
        return moment(self.wanted[-1].last + 1)


def moment(minute: int) -> datetime:
    """Start of a minute."""
    return _EPOCH + minute * _MINUTE


def minutes(since: datetime, until: datetime) -> Range:
    """The minutes between two times, at least one."""
    first = (since - _EPOCH) // _MINUTE
    return Range(first, max(first, -((_EPOCH - until) // _MINUTE) - 1))


def final_minutes(wanted: Iterable[Range], now: datetime) -> list[Range]:
    """The minutes that need not be requested again: the vendor adds no bars to them."""
    return difference(wanted, [Range((now - _EPOCH) // _MINUTE - BAR_FINAL_AFTER, _LAST_MINUTE)])


def plan(gaps: Iterable[Gap], done: Mapping[str, Iterable[Range]], since: datetime, now: datetime) -> Iterator[Call]:
    """As few calls as possible for the minutes of the gaps from `since` on that are not done.

    The plan ends one minute before `now`, since the vendor may not have completed the bar of the last minute.
    """
    ahead = Range((now - _EPOCH) // _MINUTE - 1, _LAST_MINUTE)
    touched: defaultdict[tuple[str, str | None], list[Range]] = defaultdict(list)
    for symbol, exchange, begun, ended in gaps:
        if ended > since or begun >= since:
            touched[symbol, exchange].append(minutes(max(begun, since), ended))
    for (symbol, exchange), ranges in touched.items():
        wanted = difference(ranges, [*done.get(symbol, ()), ahead])
        while wanted:  # a call covers the first minute that is left and as many minutes as an answer has bars
            left = difference(wanted, [Range(wanted[0].first, wanted[0].first + MAX_BARS - 1)])
            yield Call(symbol, exchange, tuple(difference(wanted, left)))
            wanted = left
