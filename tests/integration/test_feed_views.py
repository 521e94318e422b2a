"""The views `feed_sessions` and `feed_gaps`."""

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
from tests.support.sessions import StoredSession, entry

Gap = tuple[str | None, float, float | None, str]


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        yield store


def gaps(pipeline: Pipeline, start: float) -> list[Gap]:
    """(symbol, since, until, cause) of each gap, in seconds after `start`, earliest first."""
    rows = pipeline.database.query("SELECT symbol, since, until, cause FROM feed_gaps ORDER BY since, symbol")
    return [
        (symbol, round(since.timestamp() - start, 3), until and round(until.timestamp() - start, 3), cause)
        for symbol, since, until, cause in rows
    ]


def begun(store: DatabaseClient, start: float, *symbols: str, feed: str = "twelvedata") -> StoredSession:
    session = StoredSession(store, start)
    session.emit("started", 0, feed=feed, symbols=symbols)
    session.emit("connected", 0)
    session.emit("subscribed", 0, symbols=symbols)
    return session


def test_gap_lasts_from_the_last_frame_to_the_next_subscription(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A", "B")
    session.emit("disconnected", 40, cause="no answer", last_frame=round((start + 33) * 1e6))
    session.emit("connected", 41)
    session.emit("subscribed", 42, symbols=["A", "B"])
    session.emit("alive", 99, last_seq=0)
    cause = "disconnected: no answer"
    assert gaps(pipeline, start) == [("A", 33, 42, cause), ("B", 33, 42, cause)]


def test_killed_producer_leaves_a_gap_from_its_last_report_to_the_next_session(
    pipeline: Pipeline, store: DatabaseClient
) -> None:
    start = float(int(time.time()) - 100)
    begun(store, start, "A").emit("alive", 5, last_seq=0)
    begun(store, start + 60, "A").emit("alive", 39, last_seq=0)
    assert gaps(pipeline, start) == [("A", 5, 60, "stopped reporting")]


def test_missing_producer_is_an_open_gap(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    begun(store, start, "A").emit("stopped", 10, last_seq=0)
    assert gaps(pipeline, start) == [("A", 10, None, "stopped")]
    begun(store, start + 60, "A").emit("alive", 39, last_seq=0)
    assert gaps(pipeline, start) == [("A", 10, 60, "stopped")]


def test_midnight_is_not_a_gap(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    begun(store, start, "A").emit("stopped", 50, last_seq=0)
    begun(store, start + 50, "A").emit("alive", 49, last_seq=0)
    assert gaps(pipeline, start) == []


def test_symbol_covered_by_another_producer_has_no_gap(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    one = begun(store, start, "A", "B", feed="one")
    begun(store, start + 0.5, "B", feed="two").emit("alive", 99, last_seq=0)
    one.emit("disconnected", 40, cause="reset", last_frame=round((start + 40) * 1e6))
    one.emit("subscribed", 50, symbols=["A", "B"])
    one.emit("alive", 99, last_seq=0)
    assert gaps(pipeline, start) == [("A", 40, 50, "disconnected: reset")]


def test_refused_symbol_is_a_gap_with_its_reason(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A")
    session.emit("refused", 1, symbols={"B": "not in your plan"})
    session.emit("alive", 99, last_seq=0)
    assert gaps(pipeline, start) == [("B", 1, None, "refused: not in your plan")]


def test_unsubscribed_symbol_has_no_open_gap(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A", "B")
    session.emit("unsubscribed", 10, symbols=["B"])
    session.emit("alive", 99, last_seq=0)
    assert gaps(pipeline, start) == []


def test_overflow_is_a_gap_of_any_symbol(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A")
    since, until = round((start + 20) * 1e6), round((start + 21) * 1e6)
    session.emit("overflow", 22, first_seq=7, last_seq=9, since=since, until=until, cause="spool full")
    session.emit("alive", 99, last_seq=9)
    assert gaps(pipeline, start) == [(None, 20, 21, "overflow: spool full")]


def test_sessions_have_times_and_last_seq(pipeline: Pipeline, store: DatabaseClient) -> None:
    start = float(int(time.time()) - 100)
    session = begun(store, start, "A")
    session.checkpoint("alive", 5, 70)
    session.checkpoint("stopped", 9, 123)
    ((row),) = pipeline.database.query(
        "SELECT session, feed, started_at, stopped_at, last_seen_at, last_seq, connections FROM feed_sessions"
    )
    assert row[:2] == (session.id, "twelvedata")
    assert [round(moment.timestamp() - start, 3) for moment in row[2:5]] == [0, 9, 9]
    assert row[5:] == (123, 1)


def test_span_started_by_a_fast_clock_neither_hides_nor_creates_a_gap(
    pipeline: Pipeline, store: DatabaseClient
) -> None:
    start = float(int(time.time()) - 5000)
    ahead = begun(store, start, "A")
    ahead.emit("subscribed", 4000, symbols=["B"])  # the clock is 3,990 s ahead and goes back after 20 s
    ahead.emit("stopped", 30, last_seq=0)
    later = begun(store, start + 30, "A", "B")
    later.emit("stopped", 70, last_seq=0)
    begun(store, start + 200, "A", "B").emit("stopped", 100, last_seq=0)
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
def test_malformed_feed_event_is_a_dead_letter_and_breaks_no_view(
    event: str, detail: object, pipeline: Pipeline, store: DatabaseClient
) -> None:
    good = begun(store, time.time(), "A")
    fields = {"session": str(good.id), "number": "9", "at": str(good.id), "event": event, "detail": json.dumps(detail)}
    assert Writer(store).insert_batch(FEED, "prices:feed", [entry(fields)]).dead == 1
    pipeline.database.query("SELECT * FROM feed_sessions")
    pipeline.database.query("SELECT * FROM feed_gaps")


def test_session_with_an_impossible_time_is_a_dead_letter(store: DatabaseClient) -> None:
    fields = {"session": str(9 * 10**18), "number": "1", "at": "1", "event": "alive", "detail": "{}"}
    assert Writer(store).insert_batch(FEED, "prices:feed", [entry(fields)]).dead == 1
