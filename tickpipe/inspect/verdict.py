"""The result of `tickpipe verify` for one session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from common.formatting import counted
from common.terminal import printable
from tickpipe.ranges import Range

#: Ranges of missing trades in one line of text.
MAX_LISTED = 5
COMPLETE, SO_FAR, INCOMPLETE = "complete", "complete so far", "incomplete"
NO_FINAL_REPORT = "ended without a final report"


class Skipped(NamedTuple):
    """Trades that an exchange has numbered, from `first` to `last`, and how many of them were not received."""

    symbol: str
    exchange: str
    first: int
    last: int
    missing: int


class Traded(NamedTuple):
    """The trades of one symbol by the numbers of its exchange.

    `received` by the producer in this session; `missing`: not stored now; `repaired`: missing at first, stored now.
    """

    symbol: str
    exchange: str
    received: int
    missing: int
    repaired: int


@dataclass
class Verdict:
    """The findings of one session. Counts are price events.

    - `idle`: seconds since the producer's last report.
    - `expected`: the last number that the producer reported.
    - `waiting`: still in the spool or the stream.
    - `lost`: lost in an overflow that the producer recorded.
    - `expired`: dropped by retention.
    - `missing_events`: numbers of feed events that are missing. One of them may have recorded a gap.
    - `skipped`: trades that are missing by the numbers of the exchange. They were never received.
    - `trades`: counts by symbol, if the exchange numbers its trades.
    - `spans`: for each of the first missing ranges, when its neighbours were received.
    """

    session: int
    feed: str
    alive: bool
    stopped: bool
    idle: float
    expected: int
    stored: int
    dead_letters: int = 0
    lost: int = 0
    expired: int = 0
    waiting: int = 0
    missing: list[Range] = field(default_factory=list)
    doubled: list[Range] = field(default_factory=list)
    missing_events: list[Range] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    trades: list[Traded] = field(default_factory=list)
    spans: list[tuple[datetime | None, datetime | None]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether no price is missing or stored twice, and no feed event is missing."""
        return not self.missing and not self.doubled and not self.missing_events

    @property
    def state(self) -> str:
        """One of the four states. A session without a final report may have lost prices after its last report."""
        if not self.sound:
            return INCOMPLETE
        if self.alive or self.waiting:
            return SO_FAR
        return COMPLETE if self.stopped else NO_FINAL_REPORT

    def as_dict(self) -> dict[str, object]:
        """The verdict as JSON values."""
        skipped, trades = [each._asdict() for each in self.skipped], [each._asdict() for each in self.trades]
        return {**asdict(self), "skipped": skipped, "trades": trades, "state": self.state, "sound": self.sound}

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """The verdict as text: a summary, then a line for each range that is missing or stored twice."""
        lines = [self._summary()]
        for missing, (since, until) in zip(self.missing, self.spans, strict=False):
            lines.append(f"  MISSING {missing} ({len(missing):,}), received {_moment(since)} to {_moment(until)}")
        if len(self.missing) > len(self.spans):
            lines.append(f"  MISSING {len(self.missing) - len(self.spans):,} more ranges (--json lists them)")
        lines += [f"  STORED TWICE {doubled}" for doubled in self.doubled]
        lines += [f"  FEED EVENT {events} is missing: a gap may be unrecorded" for events in self.missing_events]
        lines += [*self._trades_lines(), *self._skipped_lines()]
        return [printable(line) for line in lines]

    def _trades_lines(self) -> Iterator[str]:
        """One line for each exchange, and one for each symbol of which trades were missing."""
        for exchange in sorted({each.exchange for each in self.trades}):
            found = [each for each in self.trades if each.exchange == exchange]
            counts = [sum(column) for column in zip(*[each[2:] for each in found], strict=True)]
            yield f"  {counted(len(found), 'symbol')} by the numbers of {exchange}: {_trade_counts(*counts)}"
        for each in self.trades:
            if each.repaired:
                yield f"  {each.symbol}: {_trade_counts(*each[2:])}"

    def _skipped_lines(self) -> Iterator[str]:
        by_symbol: defaultdict[tuple[str, str], list[Skipped]] = defaultdict(list)
        for each in self.skipped:
            by_symbol[each.symbol, each.exchange].append(each)
        for (symbol, exchange), found in by_symbol.items():
            ranges = ", ".join(str(Range(each.first, each.last)) for each in found[:MAX_LISTED])
            more = f" and {len(found) - MAX_LISTED:,} more ranges" if len(found) > MAX_LISTED else ""
            count = counted(sum(each.missing for each in found), "trade")
            yield f"  {symbol}: {count} not received, by the numbers of {exchange}: {ranges}{more}"

    def _summary(self) -> str:
        start = datetime.fromtimestamp(self.session / 1e6, UTC)
        parts = [f"session {self.session} ({start:%Y-%m-%d %H:%M:%S} UTC, {self.feed}): {self.state},"]
        if self.stored <= self.expected:
            parts.append(f"{self.stored:,} of {self.expected:,} stored")
        else:  # the newest prices arrived after the producer's last report
            parts.append(f"{self.stored:,} stored, {self.expected:,} reported")
        parts += [f"+ {self.waiting:,} waiting"] if self.waiting else []
        parts += [f"+ {self.dead_letters:,} dead letters"] if self.dead_letters else []
        parts += [f"+ {self.lost:,} lost in a recorded overflow"] if self.lost else []
        parts += [f"+ {self.expired:,} expired"] if self.expired else []
        return " ".join(parts)


def _trade_counts(received: int, missing: int, repaired: int) -> str:
    return f"{counted(received, 'trade')} received, {missing:,} missing, {repaired:,} repaired"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC" if at else "the start or end of the session"
