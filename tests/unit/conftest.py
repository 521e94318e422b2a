"""Fixtures of the unit tests: a Redis in memory and short retries."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import fakeredis
import pytest
import redis
from hypothesis import settings

from common import retry
from common.streams.group import ConsumerGroup

settings.register_profile("unit", deadline=None)  # examples may be slow on a shared machine
settings.load_profile("unit")

StreamMaker = Callable[..., ConsumerGroup]


def stored(client: redis.Redis, key: str = "prices") -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of the stream: ids and fields."""
    return cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(key))


@pytest.fixture
def redis_server() -> fakeredis.FakeServer:
    """The server. `connected = False` makes it unavailable."""
    return fakeredis.FakeServer()


@pytest.fixture
def redis_client(redis_server: fakeredis.FakeServer) -> redis.Redis:
    return fakeredis.FakeStrictRedis(server=redis_server, protocol=2)


@pytest.fixture
def make_stream(redis_server: fakeredis.FakeServer) -> StreamMaker:
    """Creates a Stream with its own client, as each process has."""

    def make(key: str = "prices", group: str = "g", consumer: str = "me") -> ConsumerGroup:
        return ConsumerGroup(fakeredis.FakeStrictRedis(server=redis_server, protocol=2), key, group, consumer)

    return make


def new_stream(key: str = "prices") -> ConsumerGroup:
    """A stream on a server of its own, for the examples of a property."""
    return ConsumerGroup(fakeredis.FakeStrictRedis(server=fakeredis.FakeServer(), protocol=2), key, "g", "me")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after milliseconds."""
    monkeypatch.setattr(retry, "FIRST", 0.001)
    monkeypatch.setattr(retry, "LONGEST", 0.002)
