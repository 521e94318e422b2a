"""The state of the pipeline at one moment: the data behind `tickpipe status`, the live view and the dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

from common.feed_event import REPORT_TIMEOUT
from common.streams.group import Backlog
from tickpipe.inspect.sizes import Sizes


class Candle(NamedTuple):
    """One candle. `start`: seconds since 1970. `volume`: None if the feed sends none."""

    start: float
    open: float
    high: float
    low: float
    close: float
    ticks: int
    volume: float | None = None


class Tick(NamedTuple):
    """One stored price event. `time` (the exchange's) and `received`: seconds since 1970."""

    time: float
    received: float
    price: float
    bid: float | None
    ask: float | None
    session: int
    seq: int


class Gap(NamedTuple):
    """A period without prices, in seconds since 1970. `until`: None while it lasts."""

    since: float
    until: float | None
    cause: str


@dataclass(frozen=True)
class SymbolStatus:
    """The newest tick of a symbol, the seconds since it was received, and one-minute candles, oldest first."""

    symbol: str
    price: float
    age: float
    candles: Sequence[Candle]

    @property
    def ticks(self) -> int:
        """Ticks in all candles."""
        return sum(candle.ticks for candle in self.candles)


class Consumer(NamedTuple):
    """A consumer: pending entries, seconds since it last asked for entries, rows stored per second."""

    name: str
    pending: int
    idle: float
    rate: float
    state: Literal["active", "idle", "gone"]


class StoredCount(NamedTuple):
    """The prices of a session: reported by its producer, found in the database, and at most still in the stream."""

    reported: int
    stored: int
    waiting: int


class Session(NamedTuple):
    """One run of a producer. `last_reported_at`: seconds since 1970. `counted`: None if nothing was counted."""

    id: int
    feed: str
    last_reported_at: float
    stopped: bool
    connection: str  # "connected", "disconnected", or "" before the first of them
    cause: str
    last_seq: int
    verified: bool
    counted: StoredCount | None = None

    def is_alive(self, now: float) -> bool:
        """Whether the producer is running, as far as its reports show. `now`: seconds since 1970."""
        return not self.stopped and now - self.last_reported_at < REPORT_TIMEOUT


class DatabaseInfo(NamedTuple):
    """The server's name and version, the database's bytes on disk, and its dead letters (counted up to 1,000)."""

    version: str
    size: int
    dead_letters: int


@dataclass(frozen=True)
class Snapshot:
    """The pipeline at one moment.

    Counts start when the reader began. Rates are per second. Latencies are seconds from received to committed. If a
    part of the pipeline is unavailable, its `…_error` is set and the other fields keep their last known values.
    """

    at: float = 0.0  # seconds since 1970
    received: int = 0
    stored: int = 0
    dead_letters: int = 0
    received_rate: float = 0.0
    stored_rate: float = 0.0
    latency_p50: float | None = None
    latency_p99: float | None = None
    group: str = ""
    backlog: Backlog | None = None  # of this group, over all channels
    channels: Mapping[str, Backlog] = field(default_factory=dict)  # of this group, by stream of prices
    groups: Mapping[str, Backlog] = field(default_factory=dict)
    consumers: Sequence[Consumer] = ()
    symbols: Sequence[SymbolStatus] = ()
    sessions: Sequence[Session] = ()
    sizes: Sizes | None = None
    database: DatabaseInfo | None = None
    redis_error: str = ""
    database_error: str = ""
    producer_error: str = ""
    note: str = ""
    producers: Mapping[str, str] = field(default_factory=dict)  # feed → name of the active producer, if it has a lease

    @property
    def error(self) -> str:
        """All errors in one text, empty if there is none."""
        return "; ".join(filter(None, (self.redis_error, self.database_error, self.producer_error)))

    @property
    def waiting(self) -> int:
        """Entries that the group has not stored yet."""
        return self.backlog.left if self.backlog else 0

    @property
    def holds_back(self) -> str | None:
        """Another group that holds back trimming."""
        slowest = laggard(self.groups)
        return slowest if slowest != self.group else None

    @property
    def active_consumers(self) -> int:
        """Consumers of the group that ask for entries."""
        return self.backlog.consumers if self.backlog else 0

    @property
    def idle_consumers(self) -> int:
        """Consumers of the group that have stopped asking."""
        return self.backlog.idle if self.backlog else 0

    def as_dict(self) -> dict[str, object]:
        """The output of `status --json`. `rows_per_second` is null: one snapshot is too short for a rate."""
        return {
            "received": self.received,
            "stored": self.stored,
            "dead_letters": self.dead_letters,
            "backlog": self.waiting,
            "consumers": self.active_consumers,
            "idle_consumers": self.idle_consumers,
            "rows_per_second": None,
            "latency_p50": self.latency_p50,
            "latency_p99": self.latency_p99,
            "symbols": [{**asdict(each), "candles": [candle[1:6] for candle in each.candles]} for each in self.symbols],
            "groups": {name: group._asdict() for name, group in self.groups.items()},
            "channels": {key: backlog._asdict() for key, backlog in self.channels.items()},
            "sizes": asdict(self.sizes) if self.sizes else None,
            "error": self.error or None,
            "note": self.note,
            "producers": dict(self.producers),
        }


def laggard(groups: Mapping[str, Backlog]) -> str | None:
    """The group that holds back trimming: of several groups, the one with the most entries left."""
    left = {name: group.left for name, group in groups.items()}
    slowest = max(left, key=left.__getitem__, default=None)
    return slowest if slowest and len(left) > 1 and left[slowest] > 0 else None
