"""Gap backfill: the vendor's one-minute bars for the minutes in which the feed was blind (sql/0008).

First the plan, which is pure: gaps → calls. A minute is its number since 1970, UTC; spans of minutes are half-open.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from psycopg2.extras import execute_values

from common.errors import ConfigurationError
from consumer.store import PriceStore
from tickpipe.rest import MOST_BARS, Bar, RefusedSymbolError
from tickpipe.retention import read_age

logger = logging.getLogger("tickpipe.backfill")

#: Minutes after which a bar that is not there will not come any more.
SETTLED = 60

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


@dataclass
class Tally:
    """What has come of it so far, by symbol: bars stored, spans that were answered for, why nothing was given."""

    bars: Counter[str] = field(default_factory=Counter)
    answered: defaultdict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        gaps = sum(len(minus(spans)) for spans in self.answered.values())
        return f"{self.bars.total():,} bars of {len(+self.bars)} symbols stored over {gaps} gaps"


def run(
    calls: Sequence[Call],
    ask: Callable[[Call], Sequence[Bar]],
    keep: Callable[[Call, Sequence[Bar]], int],
    tally: Tally,
    progress: Callable[[int, int], object],
) -> None:
    """Make the calls, each after the answer of the one before is kept; counts in `tally`. Raises what these raise.

    A symbol that is refused is named, and not asked for again. `progress` is told the symbols and the calls left.
    """
    for number, call in enumerate(calls):
        progress(len({each.symbol for each in calls[number:]}), len(calls) - number)
        if call.symbol in tally.refused:
            continue
        try:
            tally.bars[call.symbol] += keep(call, ask(call))
            tally.answered[call.symbol] += call.wanted
        except RefusedSymbolError as error:
            tally.refused[call.symbol] = str(error)
            logger.warning("no bars of %s: %s", call.symbol, error)


def read(store: PriceStore) -> tuple[list[Gap], dict[str, list[Span]]]:
    """The gaps there have been, and the minutes that are done, by symbol. Raises OutageError, ConfigurationError."""
    done: defaultdict[str, list[Span]] = defaultdict(list)
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT symbol, exchange, since, until FROM backfill_gaps ORDER BY symbol, since")
        gaps = [Gap(*row) for row in cursor.fetchall()]
        cursor.execute("SELECT symbol, since, until FROM backfill_done")
        for symbol, since, until in cursor.fetchall():
            done[symbol].append(minutes(since, until))
    return gaps, done


def keep(store: PriceStore, call: Call, bars: Iterable[Bar], now: datetime) -> int:
    """Store what the call wanted, and that it was answered, in one transaction; returns the bars that are new.

    Raises OutageError.
    """
    wanted = {moment(minute) for span in call.wanted for minute in range(*span)}
    rows = [(call.symbol, *bar) for bar in bars if bar.at in wanted]
    settled = minus(call.wanted, [Span((now - _EPOCH) // _MINUTE - SETTLED, _FOREVER)])
    asked = [(call.symbol, moment(since), moment(until)) for since, until in settled]
    with store.transaction() as connection, connection.cursor() as cursor:
        if asked:
            execute_values(cursor, _ASKED, asked)
        if rows:
            execute_values(cursor, _BARS, rows, page_size=len(rows))  # rowcount is the last page's
        return cursor.rowcount if rows else 0


_BARS = "INSERT INTO candles_backfill (symbol, bucket, open, high, low, close, volume) VALUES %s ON CONFLICT DO NOTHING"
_ASKED = "INSERT INTO candles_backfill_asked (symbol, since, until) VALUES %s ON CONFLICT DO NOTHING"
