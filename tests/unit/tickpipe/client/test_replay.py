"""A replay keeps the pace of the ticks, and can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from tickpipe.client.replay import read_speed, replay
from tickpipe.client.tick import Tick

START = datetime(2026, 3, 2, tzinfo=UTC)


class Clock(threading.Event):
    """An event whose `wait` lets the time pass."""

    now = 1000.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


class NoDatabase:
    closed = False

    def close(self) -> None:
        self.closed = True


def rows(*seconds: float) -> Iterator[Sequence[tuple[object, ...]]]:
    """Portions of two ticks, each with the time of its receipt."""
    received = [START + timedelta(seconds=each) for each in seconds]
    made = [
        (at, "BTC/USD", 1.0, None, None, None, None, None, None, None, at, 1, seq, None)
        for seq, at in enumerate(received, 1)
    ]
    return iter([made[place : place + 2] for place in range(0, len(made), 2)])


def played(speed: float, *seconds: float) -> list[tuple[float, int]]:
    """When each tick came, and its number."""
    clock, database = Clock(), NoDatabase()
    batches = replay(cast("DatabaseClient", database), rows(*seconds), speed, clock, lambda: clock.now)
    found = [(round(clock.now - 1000, 6), tick.seq) for batch in batches for tick in batch]
    assert database.closed
    return found


def test_ticks_come_at_their_pace() -> None:
    assert played(1, 0, 2, 2, 5) == [(0, 1), (2, 2), (2, 3), (5, 4)]
    assert played(60, 0, 60, 90) == [(0, 1), (1, 2), (1.5, 3)]
    assert played(0.5, 0, 1) == [(0, 1), (2, 2)]


def test_speed_0_waits_for_nothing() -> None:
    assert played(0, 0, 3600, 7200) == [(0, 1), (0, 2), (0, 3)]


def test_span_without_ticks_ends_at_once() -> None:
    assert played(1) == []


def test_stop_ends_it_between_two_ticks() -> None:
    clock = Clock()
    found: list[Tick] = []
    for batch in replay(cast("DatabaseClient", NoDatabase()), rows(0, 1, 9999), 1, clock, lambda: clock.now):
        found += batch
        if clock.now > 1100:
            clock.set()
    assert [tick.seq for tick in found] == [1, 2]


@pytest.mark.parametrize("speed", [-1, float("nan"), float("inf")])
def test_invalid_speed_is_named(speed: float) -> None:
    with pytest.raises(ConfigurationError, match=f"speed {speed!r} is not a speed. Use 1"):
        read_speed(speed)
