"""`tickpipe doctor`: checks the settings and servers that tickpipe's guarantees depend on. Changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import psycopg2
import redis

from common.database import migrations
from common.database.client import DatabaseClient
from common.database.connections import is_pooled
from common.docstrings import docstring
from common.errors import TickpipeError
from common.feed_event import REPORT_TIMEOUT
from common.formatting import counted
from common.streams.channels import ChannelStreams
from common.streams.client import NOT_PRIMARY, node_like, slot_primary
from common.streams.group import Backlog, ConsumerGroup
from tickpipe import formatting
from tickpipe.inspect.reader import no_stream
from tickpipe.inspect.sizes import SizeProbe, folder_size, free_bytes
from tickpipe.inspect.snapshot import laggard

#: Redis settings without which prices can be lost.
_REDIS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
#: Errors that only mean that this login may not run a check.
_REFUSALS = (redis.ResponseError, psycopg2.errors.InsufficientPrivilege)
#: The share of maxmemory above which little room is left for an outage of the database.
MAX_MEMORY_SHARE = 0.8
#: Seconds that clocks may differ. Gaps, latencies and "is it alive" compare the clocks of several machines.
MAX_CLOCK_DIFFERENCE = 1.0
#: Bytes of a spool before prices are lost (the default of --spool-max).
SPOOL_MAX = 1 << 30
#: Days until the disk is full. Fewer are a serious finding.
MIN_DAYS_UNTIL_FULL = 14


class Finding(NamedTuple):
    """The result of one check, and what to do if it is not `well`. `grave`: prices may be lost."""

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
    """The objects of the checks. `key` reads the API key. `clock` gives microseconds UTC."""

    channels: ChannelStreams
    store: DatabaseClient
    measure: SizeProbe
    key: Callable[[], object]
    clock: Callable[[], int]
    #: Each host of a DATABASE_URL with several, by itself.
    hosts: Mapping[str, DatabaseClient] = field(default_factory=dict)

    @property
    def client(self) -> redis.Redis:
        """A client of the Redis that has the single channel's key."""
        return self.channels.single.client

    @property
    def primaries(self) -> Mapping[str, redis.Redis]:
        """A client of each Redis that has a channel, by a name for the reader."""
        found = {"Redis": self.client}
        for stream in self.channels.prices():
            if node := slot_primary(stream.client):
                found.pop("Redis", None)
                found.setdefault("Redis {}:{}".format(*node), stream.client)
        return found

    def rows(self, query: str, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self.store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()

    def findings(self, name: str, **parameters: object) -> Iterator[Finding]:
        """The findings of a file in sql/doctor."""
        query = (migrations.SQL_FOLDER / "doctor" / f"{name}.sql").read_text(encoding="utf-8")
        for what, well, advice, grave, *ago in self.rows(query, **parameters):
            when = "".join(f" {formatting.span(seconds)} ago" for seconds in ago if seconds is not None)
            yield Finding(what + when, well, advice, grave)


def examine(context: CheckContext) -> Iterator[Finding]:
    """Run all checks. An unavailable server is a finding; a check that is not permitted is a note.

    The docstring of a check names it in that note.
    """
    for name, checks in _CHECKS.items():
        for check in checks:
            try:
                yield from check(context)
            except (TickpipeError, redis.RedisError) as error:
                cause = error.__cause__ or error
                if not isinstance(cause, _REFUSALS) or isinstance(cause, NOT_PRIMARY):
                    yield Finding(name, well=False, advice=str(error))
                    break
                advice = f"cannot be read ({error}): check it yourself"
                yield Finding(f"{name}: {docstring(check)}", well=False, advice=advice, grave=False)


def _key(context: CheckContext) -> Iterator[Finding]:
    advice = "not set here: a producer needs TWELVE_DATA_API_KEY"
    yield Finding("API key (not tested with Twelve Data)", bool(context.key()), advice, grave=False)


def _clock(place: str, context: CheckContext, read: Callable[[], float]) -> Finding:
    before, there, after = context.clock() / 1e6, read(), context.clock() / 1e6
    difference = max(before - there, there - after, 0.0)  # at least: the clock was read between `before` and `after`
    what = f"{place}: its clock and this machine's differ by {difference:.1f} s"
    advice = "run NTP on both: gaps and latencies are measured by these clocks"
    return Finding(what, difference <= MAX_CLOCK_DIFFERENCE, advice)


def _redis(context: CheckContext) -> Iterator[Finding]:
    """TYPE and TIME"""
    missing = [stream for stream in context.channels.all() if not stream.check()]
    yield Finding("Redis answers")
    for stream in missing:
        yield Finding(f"stream {stream.key}", well=False, advice=no_stream(stream), grave=False)
    yield _clock("Redis", context, lambda: float("{}.{:06}".format(*context.client.time())))


def _server(context: CheckContext) -> Iterator[Finding]:
    """INFO: version, persistence, memory"""
    for name, client in context.primaries.items():
        info = client.info()
        version = str(info.get("valkey_version", info["redis_version"]))
        yield Finding(f"{name}: version {version}", int(version.partition(".")[0]) >= 7, "upgrade to Redis 7 or Valkey")
        failed = [f"{key} {value}" for key, value in info.items() if key.endswith("_status") and value == "err"]
        what = ", ".join(failed) or "its last writes to disk succeeded"
        yield Finding(f"{name}: {what}", not failed, "Redis refuses or loses prices: check its log and its disk")
        used, limit = info["used_memory"], info.get("maxmemory") or 0
        what = f"{name}: memory {formatting.size(used)} of {formatting.size(limit) if limit else 'no maxmemory'}"
        advice = "raise maxmemory, or start consumers: a full Redis refuses prices and new groups (XGROUP CREATE)"
        yield Finding(what, not limit or used < MAX_MEMORY_SHARE * limit, advice)


def _settings(context: CheckContext) -> Iterator[Finding]:
    """appendonly yes, appendfsync always, maxmemory-policy noeviction"""
    for server, client in context.primaries.items():
        for name, value in cast("dict[str, str]", client.config_get(*_REDIS)).items():
            wanted = _REDIS[name]
            advice = f"CONFIG SET {name} {wanted}, and set it in the configuration file"
            yield Finding(f"{server}: {name} {value}", value == wanted, advice)


def _replicas(context: CheckContext) -> Iterator[Finding]:
    """INFO of the replicas"""
    for client in context.primaries.values():
        yield from _replicas_of(client)


def _replicas_of(primary: redis.Redis) -> Iterator[Finding]:
    replication: dict[str, Any] = primary.info("replication")
    replicas = [each for name, each in replication.items() if re.fullmatch("slave[0-9]+", name)]
    for replica in replicas:
        name = f"{replica['ip']}:{replica['port']}"
        with closing(node_like(primary, replica["ip"], int(replica["port"]))) as client:
            try:
                persistent = client.info("persistence")["aof_enabled"] == 1
            except redis.RedisError as error:
                advice = f"cannot be asked ({error}): check `appendonly` on it yourself"
                yield Finding(f"Redis replica {name}", well=False, advice=advice, grave=False)
                continue
        advice = "set `appendonly yes` on it: it confirms nothing on disk, and loses the stream at a restart"
        yield Finding(f"Redis replica {name}: appendonly {'yes' if persistent else 'no'}", persistent, advice)


def _groups(context: CheckContext) -> Iterator[Finding]:
    """XINFO GROUPS of all streams"""
    groups = [(stream, stream.groups()) for stream in context.channels.all()]
    findings = [finding for stream, found in groups for finding in _groups_of(stream, found)]
    if len(groups) == 2:
        yield from findings
        return
    yield from (finding for finding in findings if not finding.well)
    left = sum((found.get(stream.group) or stream.backlog()).left for stream, found in groups)
    yield Finding(f"{counted(len(groups) // 2, 'channel')}: {counted(left, 'entry')} left")


def _groups_of(stream: ConsumerGroup, groups: Mapping[str, Backlog]) -> Iterator[Finding]:
    slow = laggard(groups)
    advice = f"this group holds back trimming: start its consumers, or XGROUP DESTROY {stream.key} {slow}"
    yield Finding(f"group {slow} lags" if slow else f"{stream.key}: no group holds back trimming", not slow, advice)
    ours = groups.get(stream.group) or stream.backlog()
    consumers, left = formatting.consumers(ours.consumers, ours.idle), ours.left
    what = f"{stream.key}: {consumers} in group {stream.group}, {counted(left, 'entry')} left"
    advice = "start a consumer" + (", or find out why the idle ones ask for no entries" if ours.idle else "")
    yield Finding(what, bool(ours.consumers), advice, grave=left > 0)


def _postgres(context: CheckContext) -> Iterator[Finding]:
    """settings and clock"""
    yield from context.findings("server")
    with context.store.transaction() as connection:
        pooled = is_pooled(connection)
    yield Finding(
        "database: connected through a pooler, in transaction or session mode" if pooled else "database: no pooler"
    )
    yield _clock("database", context, lambda: float(context.rows("SELECT extract(epoch FROM clock_timestamp())")[0][0]))


def _standbys(context: CheckContext) -> Iterator[Finding]:
    """standbys"""
    for name, host in context.hosts.items():
        try:
            with host.transaction() as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')")
                is_standby, waits_for = cursor.fetchone() or (False, "")
        except TickpipeError as error:
            yield Finding(f"database host {name} does not answer", well=False, advice=str(error))
            continue
        if is_standby:
            yield Finding(
                f"database standby {name}: "
                + (f"would wait for the standby {waits_for!r} after its promotion" if waits_for else "ready"),
                not waits_for,
                "set synchronous_standby_names = '' on it: after a failover no commit would end",
            )
        else:
            yield Finding(
                f"database primary {name}: "
                + (f"commits wait for the standby {waits_for!r}" if waits_for else "no synchronous standby"),
                bool(waits_for),
                "a failover can lose stored rows, which consumers then replay from the streams; set "
                "synchronous_standby_names to avoid that",
                grave=False,
            )


def _schema(context: CheckContext) -> Iterator[Finding]:
    """schema and jobs"""
    ((there, timescaledb),) = context.rows(_TABLES)
    applied = dict(context.rows("SELECT name, checksum FROM tickpipe_migrations")) if there else {}
    moved = any(name.endswith(".timescaledb.sql") for name in applied)
    wanted = {each.name: each.checksum for each in migrations.read_migrations() if moved or not each.timescaledb}
    missing = not wanted.keys() <= applied.keys()
    yield Finding("schema" if missing else "the schema is up to date", not missing, "run `tickpipe migrate`")
    changed = ", ".join(name for name, checksum in wanted.items() if applied.get(name, checksum) != checksum)
    yield Finding(
        f"migrations changed since they were applied: {changed or 'none'}", not changed, "restore the files of sql/"
    )
    if there and timescaledb and not moved:
        advice = "run `tickpipe migrate --to-timescaledb` to move them"
        yield Finding(
            "ticks in a regular table, though TimescaleDB is installed", well=False, advice=advice, grave=False
        )
    if timescaledb:
        yield from context.findings("jobs")


def _feed(context: CheckContext) -> Iterator[Finding]:
    """feed and sizes"""
    yield from context.findings("feed", session_timeout=REPORT_TIMEOUT)
    sizes = context.measure()
    days, free = sizes.days_until_full_estimated, sizes.table_disk_free_bytes
    known = free is not None
    advice = (
        "run `tickpipe retention`, or use a larger disk" if known else "name a path on the database's disk with --disk"
    )
    well = bool(free) and (days is None or days > MIN_DAYS_UNTIL_FULL)
    yield Finding(f"disks: {sizes}", well, advice, grave=known)


def _spool(context: CheckContext) -> Iterator[Finding]:
    folder = context.measure.spool
    free, waiting = free_bytes(folder), folder_size(folder)
    room = "unknown" if free is None else formatting.size(free)
    what = f"spool: {formatting.size(waiting)} in {folder}, free: {room}"
    advice = "free some space: the spool can grow to 1 GiB while Redis is unavailable"
    yield Finding(what, free is None or free > SPOOL_MAX, advice)


_CHECKS = {
    "API key": [_key],
    "Redis": [_redis, _server, _settings, _replicas, _groups],
    "database": [_postgres, _standbys, _schema, _feed],
    "spool": [_spool],
}
_TABLES = """
SELECT to_regclass('tickpipe_migrations') IS NOT NULL, EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
"""
