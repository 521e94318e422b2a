"""`tickpipe doctor`: is what the promises rest on as it should be? Each finding says what to do. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import psycopg2
import redis

from common.database import migrations
from common.database.client import DatabaseClient
from common.database.connections import is_pooled
from common.docstrings import docstring
from common.errors import TickpipeError
from common.streams.client import NOT_PRIMARY
from common.streams.group import ConsumerGroup
from tickpipe import formatting
from tickpipe.inspect.sizes import SizeProbe, folder_size, free_bytes
from tickpipe.inspect.status import backlog_left, laggard, no_stream
from tickpipe.terminal import live_view

#: Redis's settings that no-loss rests on.
_REDIS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
#: Errors that say only that this login may not look.
_REFUSALS = (redis.ResponseError, psycopg2.errors.InsufficientPrivilege)
#: The share of maxmemory above which there is little left for an outage of the database.
FULL = 0.8
#: Seconds that clocks may differ: gaps, latencies and "is it alive" are told by more than one.
CLOCKS = 1.0
#: Bytes that a spool takes before prices are lost, at most (--spool-max's default).
SPOOL = 1 << 30
#: Days until the disk is full: fewer are bad.
DAYS = 14


class Finding(NamedTuple):
    """What was looked at, whether it is well, and what to do where it is not: `grave`, or good to know."""

    what: str
    well: bool = True
    advice: str = ""
    grave: bool = True

    @property
    def state(self) -> str:
        """`ok`, `note` or `BAD`."""
        return "ok" if self.well else "BAD" if self.grave else "note"

    def __str__(self) -> str:
        return f"{self.state:4} {self.what}" + (f": {self.advice}" if not self.well else "")


@dataclass(frozen=True)
class CheckContext:
    """What is examined. `key` reads the API key, `clock` gives microseconds UTC."""

    client: redis.Redis
    streams: Sequence[ConsumerGroup]
    store: DatabaseClient
    measure: SizeProbe
    key: Callable[[], object]
    clock: Callable[[], int]

    def rows(self, question: str) -> list[tuple[Any, ...]]:
        """What the database answers."""
        with self.store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchall()

    def findings(self, name: str) -> Iterator[Finding]:
        """What a file of sql/doctor finds."""
        question = (migrations.SQL_FOLDER / "doctor" / f"{name}.sql").read_text(encoding="utf-8")
        for what, well, advice, grave, *ago in self.rows(question):
            when = "".join(f" {formatting.span(seconds)} ago" for seconds in ago if seconds is not None)
            yield Finding(what + when, well, advice, grave)


def examine(patient: CheckContext) -> Iterator[Finding]:
    """Everything that can be looked at; what is away is a finding, too, and what may not be read is a note.

    A look's docstring is the name under which it is told that it may not look.
    """
    for name, looks in _LOOKS.items():
        for look in looks:
            try:
                yield from look(patient)
            except (TickpipeError, redis.RedisError) as error:
                cause = error.__cause__ or error
                if not isinstance(cause, _REFUSALS) or isinstance(cause, NOT_PRIMARY):
                    yield Finding(name, well=False, advice=str(error))
                    break
                advice = f"cannot be read ({error}): look yourself"
                yield Finding(f"{name}: {docstring(look)}", well=False, advice=advice, grave=False)


def _key(patient: CheckContext) -> Iterator[Finding]:
    advice = "there is none here: a producer needs TWELVE_DATA_API_KEY"
    yield Finding("API key, not tried on Twelve Data", bool(patient.key()), advice, grave=False)


def _clock(place: str, patient: CheckContext, ask: Callable[[], float]) -> Finding:
    before, there, after = patient.clock() / 1e6, ask(), patient.clock() / 1e6
    off = max(before - there, there - after, 0.0)  # at least: it was asked at some moment in between
    words = f"{place}: its clock and this machine's differ by {off:.1f} s"
    return Finding(words, off <= CLOCKS, "run NTP on both: gaps and latencies are told by these clocks")


def _redis(patient: CheckContext) -> Iterator[Finding]:
    """TYPE and TIME"""
    there = {stream: stream.check() for stream in patient.streams}
    yield Finding("Redis answers")
    for stream in (stream for stream in there if not there[stream]):
        yield Finding(f"stream {stream.key}", well=False, advice=no_stream(stream), grave=False)
    yield _clock("Redis", patient, lambda: float("{}.{:06}".format(*patient.client.time())))


def _server(patient: CheckContext) -> Iterator[Finding]:
    """INFO: version, persistence, memory"""
    info = patient.client.info()
    version = str(info.get("valkey_version", info["redis_version"]))
    yield Finding(f"Redis: version {version}", int(version.partition(".")[0]) >= 7, "upgrade to Redis 7 or Valkey")
    failed = [f"{key} {value}" for key, value in info.items() if key.endswith("_status") and value == "err"]
    words = ", ".join(failed) or "its last writes to disk went well"
    yield Finding(f"Redis: {words}", not failed, "it refuses prices, or loses them: see its log, and its disk")
    used, most = info["used_memory"], info.get("maxmemory") or 0
    words = f"Redis: memory {formatting.size(used)} of {formatting.size(most) if most else 'no maxmemory'}"
    advice = "raise maxmemory, or start consumers: a full Redis refuses prices, and new groups (XGROUP CREATE)"
    yield Finding(words, not most or used < FULL * most, advice)


def _settings(patient: CheckContext) -> Iterator[Finding]:
    """appendonly yes, appendfsync always, maxmemory-policy noeviction"""
    for name, value in cast("dict[str, str]", patient.client.config_get(*_REDIS)).items():
        wanted = _REDIS[name]
        advice = f"CONFIG SET {name} {wanted}, and in its configuration file"
        yield Finding(f"Redis: {name} {value}", value == wanted, advice)


def _groups(patient: CheckContext) -> Iterator[Finding]:
    """XINFO GROUPS of both streams"""
    for stream in patient.streams:
        groups = stream.groups()
        slow = laggard(groups)
        advice = f"it holds back trimming: start its consumers, or XGROUP DESTROY {stream.key} {slow}"
        yield Finding(f"group {slow} lags" if slow else f"{stream.key}: no group holds back trimming", not slow, advice)
        ours = groups.get(stream.group) or stream.backlog()
        members = live_view.members(ours.consumers, ours.idle)
        words = f"{stream.key}: {members} in group {stream.group}, {backlog_left(ours):,} entries left"
        advice = "start one" + (", or see what keeps the silent from asking for more" if ours.idle else "")
        yield Finding(words, bool(ours.consumers), advice, grave=backlog_left(ours) > 0)


def _postgres(patient: CheckContext) -> Iterator[Finding]:
    """settings and clock"""
    yield from patient.findings("server")
    with patient.store.transaction() as connection:
        pooled = is_pooled(connection)
    yield Finding("database: through a pooler, in transaction or session mode" if pooled else "database: no pooler")
    yield _clock("database", patient, lambda: float(patient.rows("SELECT extract(epoch FROM clock_timestamp())")[0][0]))


def _schema(patient: CheckContext) -> Iterator[Finding]:
    """schema and jobs"""
    ((there, timescaledb),) = patient.rows(_THERE)
    applied = dict(patient.rows("SELECT name, checksum FROM tickpipe_migrations")) if there else {}
    moved = any(name.endswith(".timescaledb.sql") for name in applied)
    wanted = {each.name: each.checksum for each in migrations.read_migrations() if moved or not each.timescaledb}
    missing = not wanted.keys() <= applied.keys()
    yield Finding("schema" if missing else "the schema is up to date", not missing, "run `tickpipe migrate`")
    changed = ", ".join(name for name, checksum in wanted.items() if applied.get(name, checksum) != checksum)
    yield Finding(f"files of sql/ that changed since: {changed or 'none'}", not changed, "put them back as they were")
    if there and timescaledb and not moved:
        advice = "`tickpipe migrate --to-timescaledb` moves them"
        yield Finding("ticks in a regular table; TimescaleDB is available", well=False, advice=advice, grave=False)
    if timescaledb:
        yield from patient.findings("jobs")


def _feed(patient: CheckContext) -> Iterator[Finding]:
    """feed and sizes"""
    yield from patient.findings("feed")
    sizes = patient.measure()
    days, free = sizes.days_until_full_estimated, sizes.table_disk_free_bytes
    known = free is not None
    advice = "`tickpipe retention`, or a larger disk" if known else "look yourself, or name a path on it with --disk"
    well = bool(free) and (days is None or days > DAYS)
    yield Finding(f"the disks: {live_view.sizes(sizes)}", well, advice, grave=known)


def _spool(patient: CheckContext) -> Iterator[Finding]:
    folder = patient.measure.spool
    free, waiting = free_bytes(folder), folder_size(folder)
    room = "unknown" if free is None else formatting.size(free)
    words = f"spool: {formatting.size(waiting)} wait in {folder}, free: {room}"
    yield Finding(words, free is None or free > SPOOL, "make room: it may take 1 GiB while Redis is away")


_LOOKS = {
    "API key": [_key],
    "Redis": [_redis, _server, _settings, _groups],
    "database": [_postgres, _schema, _feed],
    "spool": [_spool],
}
_THERE = """
SELECT to_regclass('tickpipe_migrations') IS NOT NULL, EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
"""
