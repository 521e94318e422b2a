"""Gaps → calls. Pure."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from common.errors import ConfigurationError
from tickpipe.backfill.rest import MOST_BARS
from tickpipe.maintenance.retention import read_age

logger = logging.getLogger("tickpipe.backfill")

#: Minutes after which a bar that is not there will not come any more.
BAR_FINAL_AFTER = 60

_EPOCH, _MINUTE = datetime(1970, 1, 1, tzinfo=UTC), timedelta(minutes=1)
_FOREVER = 1 << 40


class Span(NamedTuple):
    """The minutes from `since` on, before `until`."""

    since: int
    until: int


class Gap(NamedTuple):
    """When a symbol was blind; `exchange` is where a share is listed."""

    symbol: str
    exchange: str | None
    since: datetime
    until: datetime


class Call(NamedTuple):
    """One call, one credit. It asks from the first minute that is wanted to the last; only what is wanted is kept."""

    symbol: str
    exchange: str | None
    wanted: tuple[Span, ...]

    @property
    def since(self) -> datetime:
        """When the first minute begins."""
        return moment(self.wanted[0].since)

    @property
    def until(self) -> datetime:
        """When the last minute ends."""
        return moment(self.wanted[-1].until)


def read_since(text: str, now: datetime) -> datetime:
    """A moment, from an ISO date or datetime (of UTC where it names no zone) or an age. Raises ConfigurationError."""
    try:
        if re.fullmatch(r"\s*\d+[dwy]\s*", text):
            return now - read_age(text, "--since")
        at = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise ConfigurationError(f"--since {text!r} is no date and no age: 2026-11-22, 2026-11-22T14:30, 7d") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def moment(minute: int) -> datetime:
    """When it begins."""
    return _EPOCH + minute * _MINUTE


def minutes(since: datetime, until: datetime) -> Span:
    """The minutes that this touches, at least the one it begins in."""
    first = (since - _EPOCH) // _MINUTE
    return Span(first, max(first + 1, -((_EPOCH - until) // _MINUTE)))


def minus(spans: Iterable[Span], done: Iterable[Span] = ()) -> tuple[Span, ...]:
    """The minutes of `spans` that are not in `done`: each once, in order, in as few spans as can be."""
    edges = [edge for since, until in spans for edge in ((since, 1, 0), (until, -1, 0))]
    edges += [edge for since, until in done for edge in ((since, 0, 1), (until, 0, -1))]
    found: list[Span] = []
    wanted = covered = 0
    for (minute, more, less), (following, _, _) in pairwise(sorted(edges)):
        wanted, covered = wanted + more, covered + less
        if wanted and not covered and minute < following:
            begun = found.pop().since if found and found[-1].until == minute else minute
            found.append(Span(begun, following))
    return tuple(found)


def plan(gaps: Iterable[Gap], done: Mapping[str, Iterable[Span]], since: datetime, now: datetime) -> Iterator[Call]:
    """As few calls as can be for the minutes from `since` on that the gaps touch and that are not done.

    Up to a minute ago: the vendor may still be at work on the bar of a minute that has just ended.
    """
    ahead = Span((now - _EPOCH) // _MINUTE - 1, _FOREVER)
    touched: defaultdict[tuple[str, str | None], list[Span]] = defaultdict(list)
    for symbol, exchange, begun, ended in gaps:
        if ended > since or begun >= since:
            touched[symbol, exchange].append(minutes(max(begun, since), ended))
    for (symbol, exchange), spans in touched.items():
        wanted = minus(spans, [*done.get(symbol, ()), ahead])
        while wanted:  # each call from the first minute that is left, as far as an answer reaches
            left = minus(wanted, [Span(wanted[0].since, wanted[0].since + MOST_BARS)])
            yield Call(symbol, exchange, minus(wanted, left))
            wanted = left
