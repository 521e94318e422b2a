"""`tickpipe doctor`: is what the promises rest on as it should be? Each finding says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import redis

from common.errors import TickpipeError
from common.stream import Stream
from consumer import schema
from consumer.store import PriceStore
from tickpipe.status import laggard


class Finding(NamedTuple):
    """What was looked at, whether it is well, and what to do where it is not."""

    what: str
    well: bool
    advice: str = ""

    def __str__(self) -> str:
        return f"{'ok  ' if self.well else 'BAD '} {self.what}" + (f": {self.advice}" if not self.well else "")


#: Redis's settings that no-loss rests on.
_REDIS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


def examine(client: redis.Redis, stream: Stream, store: PriceStore) -> Iterator[Finding]:
    """Everything that can be looked at, one finding each; what is away is a finding, too."""
    try:
        yield from _redis(client, stream)
    except (TickpipeError, redis.RedisError) as error:
        yield Finding("Redis", well=False, advice=f"{error}; check REDIS_URL")
    try:
        yield from _database(store)
    except TickpipeError as error:
        yield Finding("database", well=False, advice=f"{error}; check DATABASE_URL")


def _redis(client: redis.Redis, stream: Stream) -> Iterator[Finding]:
    stream.check()
    yield Finding("Redis answers", well=True)
    try:
        found = cast("dict[str, str]", client.config_get(*_REDIS))
    except redis.ResponseError as error:
        yield Finding("Redis settings", well=False, advice=f"cannot be read ({error}): look yourself for {_REDIS}")
        found = {}
    for name, value in found.items():
        wanted = _REDIS[name]
        advice = f"CONFIG SET {name} {wanted}, and in its configuration file"
        yield Finding(f"Redis: {name} {value}", well=value == wanted, advice=advice)
    slow = laggard(stream.groups()) if client.exists(stream.key) else None
    advice = f"it holds back trimming: start its consumers, or XGROUP DESTROY {stream.key} {slow}"
    yield Finding(f"group {slow} lags" if slow else "no group holds back trimming", well=slow is None, advice=advice)


def _database(store: PriceStore) -> Iterator[Finding]:
    with store.transaction() as connection, connection.cursor() as cursor:
        yield Finding("the database answers", well=True)
        cursor.execute("SELECT current_setting('fsync'), to_regclass('tickpipe_migrations') IS NOT NULL")
        fsync, has_schema = cursor.fetchone() or ("", False)
        yield Finding(f"database: fsync {fsync}", well=fsync == "on", advice="set fsync = on in postgresql.conf")
        missing = set()
        if has_schema:
            cursor.execute("SELECT name FROM tickpipe_migrations")
            applied = {name for (name,) in cursor.fetchall()}
            missing = {each.name for each in schema.read_migrations() if not each.timescaledb} - applied
        well = has_schema and not missing
        yield Finding("the schema is up to date" if well else "schema", well=well, advice="run `tickpipe migrate`")
