"""A session numbers price events and feed events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.feed_event import FeedEvent
from producer.session import Session, overflow

DAY = 86_400_000_000
START = 20_000 * DAY + 5


def make_session(start: int = START) -> tuple[Session, list[FeedEvent]]:
    emitted: list[FeedEvent] = []
    return Session(start, emitted.append, lambda: start), emitted


@given(st.lists(st.integers(START - 10, START + 10)))
def test_seq_has_no_gaps_and_received_is_increasing(readings: list[int]) -> None:
    session, _ = make_session()
    prices = [session.number({}, now) for now in readings]
    assert [price.seq for price in prices] == list(range(1, len(readings) + 1))
    received = [START, *(price.received for price in prices)]
    for now, (before, after) in zip(readings, pairwise(received), strict=True):
        assert after == max(now, before + 1)  # a tie, or a clock that steps back, adds 1 µs


def test_feed_events_from_many_threads_are_numbered_in_order() -> None:
    emitted: list[FeedEvent] = []

    def emit(event: FeedEvent) -> None:
        time.sleep(0)  # lets other threads run in between
        emitted.append(event)

    session = Session(START, emit, lambda: START)

    def emit_some(kind: str) -> None:
        for n in range(200):
            session.emit(kind, n=n)

    threads = [threading.Thread(target=emit_some, args=(f"kind {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.number for event in emitted] == [str(n) for n in range(1, 1601)]
    assert {event.session for event in emitted} == {str(START)}


@pytest.mark.parametrize("start", [20_000 * DAY, START, 20_001 * DAY - 1])
def test_session_ends_at_midnight_utc(start: int) -> None:
    assert make_session(start)[0].ends == 20_001 * DAY


def test_session_ends_if_the_clock_goes_back_one_second() -> None:
    session, _ = make_session()
    session.number({}, START + 5_000_000)
    assert [session.is_over(START + 5_000_000 - back) for back in (-1, 0, 999_999, 1_000_000)] == [False] * 3 + [True]
    session.emit("alive", START + 7_000_000)  # a feed event counts as well as a price
    assert [session.is_over(START + 7_000_000 - back) for back in (999_999, 1_000_000)] == [False, True]


def test_feed_event_time_is_now_or_the_given_time() -> None:
    emitted: list[FeedEvent] = []
    clock: Iterator[int] = count(START + 100)
    session = Session(START, emitted.append, lambda: next(clock))
    session.emit("started")
    session.emit("connected", START + 7)
    assert [event.at for event in emitted] == [str(START + 100), str(START + 7)]


def test_alive_and_stopped_carry_last_seq_and_time_range() -> None:
    session, emitted = make_session()
    session.checkpoint("alive", connected=True)
    timestamps: list[object] = ["1700000009", "1700000001", "nonsense", None, [], "1700000000000", "nan", "-1"]
    for timestamp in timestamps:
        session.number({"timestamp": timestamp}, START)
    session.number({}, START)
    session.checkpoint("stopped")
    assert [json.loads(event.detail) for event in emitted] == [
        {"last_seq": 0, "connected": True},
        {"last_seq": 9, "time_min": 1700000001.0, "time_max": 1700000009.0},
    ]


def test_overflow_names_the_exact_seq_range_of_its_session() -> None:
    session, _ = make_session()
    prices = [session.number({}, START + 10 * n) for n in range(1, 6)]
    event = overflow(prices[1], prices[3], "queue full")
    detail = {"first_seq": 2, "last_seq": 4, "since": START + 20, "until": START + 40, "cause": "queue full"}
    assert (event.session, event.event, json.loads(event.detail)) == (str(START), "overflow", detail)
