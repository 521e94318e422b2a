"""When was I blind, and why? `feed_sessions` and `feed_gaps`, asked in SQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from common.database.client import DatabaseClient
from common.settings import Secret
from consumer.tables import FEED
from consumer.writer import Writer
from tests.support.pipeline import Pipeline
from tests.support.told import Told, entry

Gap = tuple[str | None, float, float | None, str]


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        yield store


def gaps(pipeline: Pipeline, start: float) -> list[Gap]:
    """(symbol, since, until, cause), in seconds after `start`, the earliest first."""
    rows = pipeline.database.query("SELECT symbol, since, until, cause FROM feed_gaps ORDER BY since, symbol")
    return [
        (symbol, round(since.timestamp() - start, 3), until and round(until.timestamp() - start, 3), cause)
        for symbol, since, until, cause in rows
    ]


def begun(store: DatabaseClient, start: float, *symbols: str, feed: str = "twelvedata") -> Told:
    session = Told(store, start)
    session.tell("started", 0, feed=feed, symbols=symbols)
    session.tell("connected", 0)
    session.tell("subscribed", 0, symbols=symbols)
    return session


def test_a_gap_begins_at_the_last_frame_and_ends_when_subscribed_again(
    pipeline: Pipeline, store: DatabaseClient
) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A", "B")
    session.tell("disconnected", 40, cause="no answer", last_frame=round((start + 33) * 1e6))
    session.tell("connected", 41)
    session.tell("subscribed", 42, symbols=["A", "B"])
    session.tell("alive", 99, last_seq=0)
    cause = "disconnected: no answer"
    assert gaps(pipeline, start) == [("A", 33, 42, cause), ("B", 33, 42, cause)]


def test_a_killed_producer_leaves_a_gap_from_its_last_word_to_the_next_session(
    pipeline: Pipeline, store: DatabaseClient
) -> None:
    start = float(int(time.time()) - 100)
    begun(store, start, "A").tell("alive", 5, last_seq=0)
    begun(store, start + 60, "A").tell("alive", 39, last_seq=0)
    assert gaps(pipeline, start) == [("A", 5, 60, "ended without word")]


def test_no_producer_is_a_gap_that_goes_on(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    begun(store, start, "A").tell("stopped", 10, last_seq=0)
    assert gaps(pipeline, start) == [("A", 10, None, "stopped")]
    begun(store, start + 60, "A").tell("alive", 39, last_seq=0)
    assert gaps(pipeline, start) == [("A", 10, 60, "stopped")]


def test_midnight_is_no_gap(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    begun(store, start, "A").tell("stopped", 50, last_seq=0)
    begun(store, start + 50, "A").tell("alive", 49, last_seq=0)
    assert gaps(pipeline, start) == []


def test_a_symbol_that_another_producer_covers_is_not_blind(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    one = begun(store, start, "A", "B", feed="one")
    begun(store, start + 0.5, "B", feed="two").tell("alive", 99, last_seq=0)
    one.tell("disconnected", 40, cause="reset", last_frame=round((start + 40) * 1e6))
    one.tell("subscribed", 50, symbols=["A", "B"])
    one.tell("alive", 99, last_seq=0)
    assert gaps(pipeline, start) == [("A", 40, 50, "disconnected: reset")]


def test_a_refused_symbol_is_a_gap_with_its_reason(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A")
    session.tell("refused", 1, symbols={"B": "not in your plan"})
    session.tell("alive", 99, last_seq=0)
    assert gaps(pipeline, start) == [("B", 1, None, "refused: not in your plan")]


def test_what_was_unsubscribed_is_no_gap_that_goes_on(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A", "B")
    session.tell("unsubscribed", 10, symbols=["B"])
    session.tell("alive", 99, last_seq=0)
    assert gaps(pipeline, start) == []


def test_an_overflow_is_a_gap_of_any_symbol(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A")
    since, until = round((start + 20) * 1e6), round((start + 21) * 1e6)
    session.tell("overflow", 22, first_seq=7, last_seq=9, since=since, until=until, cause="spool full")
    session.tell("alive", 99, last_seq=9)
    assert gaps(pipeline, start) == [(None, 20, 21, "overflow: spool full")]


def test_sessions_tell_when_they_ran_and_how_far_they_came(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A")
    session.vouch("alive", 5, 70)
    session.vouch("stopped", 9, 123)
    ((row),) = pipeline.database.query(
        "SELECT session, feed, started_at, stopped_at, last_seen_at, last_seq, connections FROM feed_sessions"
    )
    assert row[:2] == (session.id, "twelvedata")
    assert [round(moment.timestamp() - start, 3) for moment in row[2:5]] == [0, 9, 9]
    assert row[5:] == (123, 1)


def test_a_span_that_began_by_a_clock_that_was_ahead_hides_and_makes_no_gap(
    pipeline: Pipeline, store: DatabaseClient
) -> None:
    start = float(int(time.time()) - 5000)
    ahead = begun(store, start, "A")
    ahead.tell("subscribed", 4000, symbols=["B"])  # by a clock that is ahead by 3,990 s, and goes back after 20 s
    ahead.tell("stopped", 30, last_seq=0)
    later = begun(store, start + 30, "A", "B")
    later.tell("stopped", 70, last_seq=0)
    begun(store, start + 200, "A", "B").tell("stopped", 100, last_seq=0)
    expected = [("A", 100, 200), ("B", 100, 200), ("A", 300, None), ("B", 300, None)]
    assert gaps(pipeline, start) == [(*gap, "stopped") for gap in expected]


@pytest.mark.parametrize(
    ("event", "detail"),
    [
        ("alive", {"last_seq": "x"}),
        ("alive", {"last_seq": 1.5}),
        ("alive", {"last_seq": 1, "time_min": "yesterday"}),
        ("subscribed", {"symbols": "AAPL"}),
        ("subscribed", {}),
        ("refused", {"symbols": ["AAPL"]}),
        ("disconnected", {"last_frame": "now"}),
        ("overflow", {"first_seq": 1, "last_seq": 2, "since": -1, "until": "z"}),
        ("started", []),
    ],
)
def test_an_odd_event_is_a_dead_letter_and_breaks_no_view(
    event: str, detail: object, pipeline: Pipeline, store: DatabaseClient
) -> None:
    good = begun(store, time.time(), "A")
    fields = {"session": str(good.id), "number": "9", "at": str(good.id), "event": event, "detail": json.dumps(detail)}
    assert Writer(store).insert_batch(FEED, "prices:feed", [entry(fields)]).dead == 1
    pipeline.database.query("SELECT * FROM feed_sessions")
    pipeline.database.query("SELECT * FROM feed_gaps")


def test_a_session_beyond_all_time_is_a_dead_letter(store: DatabaseClient) -> None:
    fields = {"session": str(9 * 10**18), "number": "1", "at": "1", "event": "alive", "detail": "{}"}
    assert Writer(store).insert_batch(FEED, "prices:feed", [entry(fields)]).dead == 1
