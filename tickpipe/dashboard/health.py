"""The pipeline's health: what was measured, and the four boxes that tell it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from common.errors import TickpipeError
from common.feed_event import REPORT_TIMEOUT
from common.streams.group import IDLE_AFTER, Backlog, ConsumerGroup, Member
from tickpipe import formatting
from tickpipe.dashboard.data import Reader
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.status import backlog_left, laggard, worst

#: Seconds for which a consumer that went off the group in silence is still shown.
GONE_SHOWN = 15.0
#: Seconds over which rates are taken.
RATE_OVER = 5.0
#: Sessions that are listed, and the longest whose rows are counted for it: more is left to `tickpipe verify`.
SESSIONS, COUNTED = 6, 100_000

State = Literal["good", "warn", "bad", "idle"]


class Consumer(NamedTuple):
    """A consumer: entries in its hands, seconds since it last asked, rows a second that it stores."""

    name: str
    pending: int
    idle: float
    rate: float
    state: Literal["works", "silent", "gone"]


class Count(NamedTuple):
    """What was counted of a session: of so many prices vouched for, those stored and those on their way, at most."""

    vouched: int
    stored: int
    waiting: int


class Session(NamedTuple):
    """A run of a producer; times in seconds since 1970. `counted` is None where nobody has counted."""

    id: int
    feed: str
    last_word: float
    stopped: bool
    connection: str  # connected, disconnected, or empty where neither was told yet
    cause: str
    last_seq: int
    verified: bool
    counted: Count | None = None


class Database(NamedTuple):
    """The database: what it is, its bytes on disk, its dead letters (at most 1,000 are counted)."""

    version: str
    size: int
    dead_letters: int


@dataclass(frozen=True)
class Health:
    """One look. Rates a second; latencies in seconds, from received to committed; troubles in words, None: all well."""

    at: float = 0.0  # seconds since 1970
    backlog: Backlog | None = None
    holds_back: str | None = None
    received_rate: float = 0.0
    stored_rate: float = 0.0
    latency_p50: float | None = None
    latency_p99: float | None = None
    consumers: Sequence[Consumer] = ()
    sessions: Sequence[Session] = ()
    database: Database | None = None
    redis_trouble: str | None = None
    database_trouble: str | None = None


class Rate:
    """How fast a counter grows, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, now: float, count: int) -> float:
        """Take note of the counter at `now` (seconds); its growth a second. 0 at first, and after it fell back."""
        if self._seen and count < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_OVER:
            self._seen.popleft()
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first else 0.0


class ConsumerTracker:
    """Keeps the list of consumers: who works, who is silent, and who has gone off the group in silence."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}
        self._last: dict[str, Consumer] = {}
        self._gone: dict[str, tuple[float, Consumer]] = {}

    def call(self, now: float, members: Sequence[Member], stored: Mapping[str, int]) -> list[Consumer]:
        """The consumers at `now` (seconds), by name. `stored`: the rows that each has told of."""
        present = {}
        for member in members:
            rate = self._rates.setdefault(member.name, Rate())(now, stored.get(member.name, 0))
            state: Literal["works", "silent"] = "silent" if member.idle > IDLE_AFTER else "works"
            present[member.name] = Consumer(*member, rate, state)
        for name in self._last.keys() - present.keys():
            del self._rates[name]
            if (last := self._last[name]).state == "silent":  # else it has said goodbye
                self._gone[name] = (now, last._replace(state="gone", pending=0, rate=0.0))
        self._last = present
        self._gone = {
            name: (since, consumer)
            for name, (since, consumer) in self._gone.items()
            if name not in present and since > now - GONE_SHOWN
        }
        return sorted([*present.values(), *(consumer for _, consumer in self._gone.values())])


class HealthMonitor:
    """Looks at the whole pipeline, for all browsers together."""

    def __init__(
        self,
        stream: ConsumerGroup,
        reader: Reader,
        clock: Callable[[], int],
        *,
        every: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives microseconds UTC. `every`: seconds between two looks, at least."""
        self._stream = stream
        self._reader = reader
        self._clock = clock
        self._monotonic = monotonic
        self._received, self._stored, self._roll = Rate(), Rate(), ConsumerTracker()
        self._sessions = CachedQuery(self._read_sessions, 2.0, monotonic)
        self._counts: dict[int, CachedQuery[Count]] = {}
        self._database = CachedQuery(self._read_database, 15.0, monotonic)
        self._last = Health()
        # What is costly in it is paced by itself, and to wait in an outage costs nothing: its end is seen at once.
        self.look = CachedQuery(self._look, every, monotonic, patience=0)

    def _look(self) -> Health:
        """What Redis and the database say; of one that is away, the last that was known, and the trouble."""
        health = replace(self._last, at=self._clock() / 1e6, redis_trouble=None, database_trouble=None)
        try:
            health = self._look_at_redis(health)
        except TickpipeError as error:
            # What Redis told before is of no use now: rates and consumers would go on looking well.
            health = replace(health, redis_trouble=str(error), received_rate=0.0, stored_rate=0.0, consumers=())
        try:
            self._last = health  # counting rests on the backlog of before
            health = replace(health, sessions=self._sessions(), database=self._database())
        except TickpipeError as error:
            health = replace(health, database_trouble=str(error), stored_rate=0.0)
        self._last = health
        return health

    def _look_at_redis(self, health: Health) -> Health:
        now = self._monotonic()
        groups = self._stream.groups()
        backlog = groups.get(self._stream.group) or self._stream.backlog()
        reports = self._stream.statistics.read()
        fresh = [report for report in reports.values() if report["at"] >= self._clock() - RATE_OVER * 1e6]
        stored = {name: int(report.get("stored", 0)) for name, report in reports.items()}
        holds_back = laggard(groups)
        return replace(
            health,
            backlog=backlog,
            holds_back=holds_back if holds_back != self._stream.group else None,
            received_rate=self._received(now, backlog.appended),
            stored_rate=self._stored(now, sum(stored.values())),
            latency_p50=worst(fresh, "latency_p50"),
            latency_p99=worst(fresh, "latency_p99"),
            consumers=self._roll.call(now, self._stream.consumers(), stored),
        )

    def _read_sessions(self) -> list[Session]:
        found = [Session(*row) for row in self._reader.rows(_SESSIONS, count=SESSIONS)]
        counts = {
            session.id: self._counts.get(session.id) or self._counter(session.id)
            for session in found
            if not session.verified and session.last_seq <= COUNTED
        }
        self._counts = counts
        return [
            session._replace(counted=counts[session.id]()) if session.id in counts else session for session in found
        ]

    def _counter(self, session: int) -> CachedQuery[Count]:
        return CachedQuery(lambda: self._read_count(session), 10.0, self._monotonic)

    def _read_count(self, session: int) -> Count:
        waiting = backlog_left(self._last.backlog) if self._last.backlog else 0
        vouched, stored = self._reader.rows(_COUNT, session=session)[0]
        return Count(vouched, stored, waiting)

    def _read_database(self) -> Database:
        return Database(*self._reader.rows(_DATABASE)[0])


@dataclass(frozen=True)
class Box:
    """One stage of the pipeline: a figure with its unit, and two lines below it."""

    state: State
    figure: str
    unit: str
    lines: tuple[str, str]


def boxes(health: Health) -> tuple[Box, Box, Box, Box]:
    """Websocket, stream, consumers, database."""
    return _websocket(health), _stream(health), _consumers(health), _database(health)


def headline(health: Health) -> tuple[State, str]:
    """The whole pipeline in a few words: the worst of it."""
    names = ("websocket", "Redis", "consumers", "database")
    found = list(zip(names, boxes(health), strict=True))
    for state in ("bad", "warn"):
        for name, box in found:
            if box.state == state:
                return box.state, f"{name}: {box.lines[0]}"
    if found[0][1].state == "idle":
        return "idle", found[0][1].lines[0]
    return "good", "all is well"


def _websocket(health: Health) -> Box:
    figure = formatting.rate(health.received_rate)
    if not health.sessions:
        return Box("idle", figure, "prices/s", ("no producer yet", ""))
    # A session that began by a clock that was ahead comes first until then.
    newest = next((one for one in health.sessions if one.id / 1e6 <= health.at), health.sessions[0])
    ago = formatting.span(health.at - newest.last_word)
    alive = [session for session in health.sessions if _alive(session, health.at)]
    lost = [session for session in alive if session.connection == "disconnected"]
    if lost:
        return Box("bad", figure, "prices/s", ("disconnected", lost[0].cause))
    if alive:
        feeds = ", ".join(sorted({session.feed for session in alive}))
        return Box("good", figure, "prices/s", ("connected" if alive[0].connection else "connecting", feeds))
    if newest.stopped:
        return Box("idle", figure, "prices/s", (f"producer stopped {ago} ago", newest.feed))
    if health.redis_trouble or health.database_trouble or not any(one.state == "works" for one in health.consumers):
        # Its word comes by way of Redis and consumers into the database: where these stand still, none can have come.
        return Box("idle", figure, "prices/s", ("not known", f"the last word stored: {ago} ago"))
    return Box("bad", figure, "prices/s", (f"producer silent for {ago}", newest.feed))


def _alive(session: Session, now: float) -> bool:
    return not session.stopped and now - session.last_word < REPORT_TIMEOUT


def _stream(health: Health) -> Box:
    if health.redis_trouble:
        return Box("bad", "–", "waiting", ("cannot be read", health.redis_trouble))
    if health.backlog is None:
        return Box("idle", "–", "waiting", ("nothing read yet", ""))
    left = backlog_left(health.backlog)
    behind = left > max(1000.0, 10 * health.stored_rate)
    words = f"{formatting.count(health.backlog.lag)} unread · {formatting.count(health.backlog.pending)} in hand"
    held = f"group {health.holds_back} holds back trimming" if health.holds_back else ""
    state: State = "warn" if behind or held else "good"
    return Box(
        state,
        formatting.count(left),
        "waiting",
        (words, held or f"{formatting.count(health.backlog.length)} entries held"),
    )


def _consumers(health: Health) -> Box:
    works = [consumer for consumer in health.consumers if consumer.state == "works"]
    lost = [consumer for consumer in health.consumers if consumer.state != "works"]
    held = sum(consumer.pending for consumer in lost)
    figure, unit = str(len(works)), "at work"
    if health.redis_trouble:
        return Box("idle", "–", unit, ("not known", ""))
    if lost:
        words = f"{len(lost)} stopped" + (f", {formatting.count(held)} in hand" if held else "")
        return Box("bad", figure, unit, (words, "what it holds is taken over" if held else ""))
    if not works:
        return Box("bad" if health.backlog and backlog_left(health.backlog) else "idle", "0", unit, ("none there", ""))
    held = sum(consumer.pending for consumer in works)
    return Box("good", figure, unit, ("all of them answer", f"{formatting.count(held)} in hand"))


def _database(health: Health) -> Box:
    figure, unit = formatting.rate(health.stored_rate), "rows/s"
    if health.database_trouble:
        return Box("bad", figure, unit, ("cannot be read", health.database_trouble))
    if health.database is None:
        return Box("idle", figure, unit, ("nothing read yet", ""))
    dead = health.database.dead_letters
    about = f"{health.database.version} · {formatting.size(health.database.size)}"
    if dead:
        return Box("warn", figure, unit, (f"{dead:,}{'+' if dead >= 1000 else ''} dead letters", about))
    return Box("good", figure, unit, ("no dead letters", about))


def completeness(session: Session, now: float) -> tuple[State, str]:
    """Whether all that a session has vouched for is stored, in words."""
    if session.verified:
        return "good", "complete, verified"
    if session.counted is None:
        return "idle", "not verified yet"
    if session.counted.vouched == 0 and _alive(session, now):
        return "idle", "has just begun"
    missing = session.counted.vouched - session.counted.stored
    if missing <= 0:
        return "good", "complete so far" if _alive(session, now) else "complete, counted"
    if missing <= session.counted.waiting:
        return "idle", f"{formatting.count(missing)} on their way"
    return "bad", f"{formatting.count(missing)} not found: tickpipe verify"


# Newest sessions first, by the primary key (session, number): a few index look-ups each, however long they are.
_SESSIONS = """
WITH RECURSIVE newest AS (
    (SELECT session, 1 AS place FROM feed_events ORDER BY session DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT e.session FROM feed_events e WHERE e.session < newest.session ORDER BY e.session DESC LIMIT 1),
           place + 1
    FROM newest WHERE newest.session IS NOT NULL AND place < %(count)s
)
SELECT newest.session, coalesce(started.feed, '?'), extract(epoch FROM word.at)::float8, word.event = 'stopped',
       coalesce(line.event, ''), coalesce(line.cause, ''), coalesce(vouched.last_seq, 0),
       coalesce(verified.last_seq >= coalesce(vouched.last_seq, 0), false)
FROM newest
CROSS JOIN LATERAL (
    SELECT at, event FROM feed_events e WHERE e.session = newest.session ORDER BY number DESC LIMIT 1
) AS word
LEFT JOIN LATERAL (
    SELECT (detail ->> 'last_seq')::bigint AS last_seq FROM feed_events e
    WHERE e.session = newest.session AND event IN ('alive', 'stopped') ORDER BY number DESC LIMIT 1
) AS vouched ON true
LEFT JOIN LATERAL (
    SELECT detail ->> 'feed' AS feed FROM feed_events e
    WHERE e.session = newest.session AND event = 'started' ORDER BY number LIMIT 1
) AS started ON true
LEFT JOIN LATERAL (
    SELECT event, detail ->> 'cause' AS cause FROM feed_events e
    WHERE e.session = newest.session AND event IN ('connected', 'disconnected')
      AND event <> 'alive' -- what the index has
    ORDER BY number DESC LIMIT 1
) AS line ON true
LEFT JOIN verified_sessions verified ON verified.session = newest.session
WHERE newest.session IS NOT NULL
ORDER BY newest.session DESC
"""

# Through the primary key, symbol by symbol, within the span of the exchange's time that the session has told of.
_COUNT = """
WITH RECURSIVE told AS (
    SELECT session, last_seq, to_timestamp(coalesce(time_min, session / 1e6)) AS since,
           to_timestamp(coalesce(time_max, session / 1e6)) AS until
    FROM feed_sessions WHERE session = %(session)s
), names AS (
    (SELECT symbol FROM prices_real_time ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT p.symbol FROM prices_real_time p WHERE p.symbol > names.symbol ORDER BY p.symbol LIMIT 1)
    FROM names WHERE names.symbol IS NOT NULL
)
SELECT coalesce((SELECT last_seq FROM told), 0), coalesce((
    SELECT sum(rows.count) FROM told, names, LATERAL (
        SELECT count(*) FROM prices_real_time p
        WHERE p.symbol = names.symbol AND p.time >= told.since AND p.time <= told.until
          AND p.session = told.session AND p.seq <= told.last_seq
    ) AS rows
), 0)::bigint + (
    SELECT count(DISTINCT d.seq) FROM dead_letters d, told
    WHERE d.session = told.session AND d.seq <= told.last_seq AND d.stream NOT LIKE '%%:feed'
)
"""

_DATABASE = """
SELECT coalesce((SELECT 'TimescaleDB ' || extversion FROM pg_extension WHERE extname = 'timescaledb'),
                'PostgreSQL ' || split_part(current_setting('server_version'), ' ', 1)),
       pg_database_size(current_database()),
       (SELECT count(*) FROM (SELECT 1 FROM dead_letters LIMIT 1000) AS letters)
"""
