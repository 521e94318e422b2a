"""The state of each session, and the gaps of a span: the same as what all events say."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import feed_event
from common.database.client import DatabaseClient
from common.settings import Secret
from consumer.tables import FEED
from consumer.writer import Writer
from tests.support.pipeline import Pipeline
from tests.support.sessions import entry

DAY = 86_400_000_000
START = 1_700_006_400_000_000  # a midnight

Event = tuple[int, int, str]


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        yield store


def deliver(store: DatabaseClient, events: Sequence[feed_event.FeedEvent]) -> None:
    Writer(store).insert_batch(FEED, "prices:feed", [entry(feed_event.encode(event)) for event in events])


def made(events: Sequence[Event]) -> list[feed_event.FeedEvent]:
    """Events of sessions, given as (session, number, kind)."""
    details: dict[str, dict[str, Any]] = {
        "started": {"feed": "f"},
        "alive": {"last_seq": 1},
        "stopped": {"last_seq": 1},
    }
    return [
        feed_event.make(
            START + session, number, START + number, kind,
            {name: value * number if name == "last_seq" else value for name, value in details.get(kind, {}).items()},
        )
        for session, number, kind in events
    ]  # fmt: skip


kinds = st.sampled_from(["started", "connected", "alive", "stopped"])
histories = st.dictionaries(st.tuples(st.integers(0, 2), st.integers(1, 8)), kinds, min_size=1, max_size=16)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories, st.randoms(use_true_random=False), st.integers(1, 5))
def test_state_is_that_of_all_events_in_any_order(
    pipeline: Pipeline, store: DatabaseClient, history: dict[tuple[int, int], str], rng: object, size: int
) -> None:
    """Batches in any order, each delivered twice."""
    pipeline.database.query("TRUNCATE feed_events, verified_sessions")
    events = made([(*identity, kind) for identity, kind in history.items()])
    rng.shuffle(events)  # type: ignore[attr-defined]
    for first in range(0, len(events), size):
        for _ in range(2):
            deliver(store, events[first : first + size])
    found = pipeline.database.query(
        "SELECT session, feed, last_number, last_seen_at, stopped, last_seq FROM feed_states ORDER BY session"
    )
    expected = pipeline.database.query(
        "SELECT s.session, s.feed, s.last_number, newest.at, newest.event = 'stopped', s.last_seq "
        "FROM feed_sessions AS s "
        "JOIN feed_events AS newest ON newest.session = s.session AND newest.number = s.last_number ORDER BY 1"
    )
    assert found == expected


def test_verified_sessions_are_due_again_if_their_producer_reports_more(
    pipeline: Pipeline, store: DatabaseClient
) -> None:
    due = "SELECT session - %s FROM feed_states WHERE NOT verified ORDER BY 1"
    deliver(store, made([(0, 1, "started"), (0, 2, "alive"), (1, 1, "started"), (1, 2, "stopped")]))
    assert pipeline.database.query(due, START) == [(0,), (1,)]
    pipeline.database.query(
        "INSERT INTO verified_sessions (session, last_seq, rows, dead_letters, lost) "
        "SELECT session, last_seq, 0, 0, 0 FROM feed_sessions"
    )
    assert pipeline.database.query(due, START) == []
    deliver(store, made([(0, 3, "alive")]))
    assert pipeline.database.query(due, START) == [(0,)]
    pipeline.database.query("DELETE FROM verified_sessions WHERE session = %s", START + 1)
    assert pipeline.database.query(due, START) == [(0,), (1,)]


# --- Gaps of a span

SYMBOLS = ["A", "B", "C"]


@st.composite
def days(draw: st.DrawFn) -> list[list[tuple[int, str, list[str]]]]:
    """For each day what happens on the connection: (microseconds after midnight, kind, symbols)."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        times = sorted(draw(st.lists(st.integers(1, 86_399), max_size=4, unique=True)))
        steps = [(0, "subscribed", SYMBOLS)]
        for at in times:
            kind = draw(st.sampled_from(["disconnected", "subscribed", "overflow"]))
            steps.append((at * 1_000_000, kind, draw(st.lists(st.sampled_from(SYMBOLS), min_size=1, unique=True))))
        found.append(steps)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(days(), st.floats(-1.0, 7.0), st.floats(0.1, 3.0))
def test_gaps_of_a_span_are_those_of_all_time_that_overlap_it(
    pipeline: Pipeline,
    store: DatabaseClient,
    history: list[list[tuple[int, str, list[str]]]],
    since: float,
    width: float,
) -> None:
    pipeline.database.query("TRUNCATE feed_events, verified_sessions")
    for day, steps in enumerate(history):
        session, events = START + day * DAY, []
        for number, (at, kind, symbols) in enumerate(steps, 1):
            detail: dict[str, object] = {"symbols": symbols} if kind == "subscribed" else {"cause": "x"}
            if kind == "overflow":
                detail |= {"since": session + at, "until": session + at + 1_000_000}
            events.append(feed_event.make(session, number, session + at, kind, detail))
        events.append(feed_event.make(session, len(steps) + 1, session + DAY - 1, "stopped", {"last_seq": 0}))
        deliver(store, events)
    first, last = (datetime.fromtimestamp(START / 1e6 + days * 86_400, UTC) for days in (since, since + width))
    between = pipeline.database.query("SELECT * FROM feed_gaps_between(%s, %s) ORDER BY 1, 2, 3, 4", first, last)
    every = pipeline.database.query(
        "SELECT symbol, since, until, cause FROM feed_gaps WHERE coalesce(until, 'infinity') > %s AND since < %s "
        "ORDER BY 1, 2, 3, 4",
        first, last,
    )  # fmt: skip
    assert between == every
    one = pipeline.database.query(
        "SELECT * FROM feed_gaps_between(%s, %s, one_symbol => 'B') ORDER BY 1, 2, 3, 4", first, last
    )
    assert one == [gap for gap in every if gap[0] in {"B", None}]
    filled = pipeline.database.query("SELECT symbol, since FROM backfill_gaps_from(%s) ORDER BY 1, 2", first)
    assert filled == pipeline.database.query(
        "SELECT symbol, since FROM backfill_gaps WHERE until > %s OR since >= %s ORDER BY 1, 2", first, first
    )


def test_gap_that_began_long_before_the_span_has_its_start(pipeline: Pipeline, store: DatabaseClient) -> None:
    """The producer did not run for 40 days."""
    now = int(time.time() * 1e6)
    for session in (now - 41 * DAY, now - DAY // 2):
        deliver(
            store,
            [
                feed_event.make(session, 1, session, "subscribed", {"symbols": ["A"]}),
                feed_event.make(session, 2, session + 1000, "stopped", {"last_seq": 0}),
            ],
        )
    gaps = pipeline.database.query(
        "SELECT symbol, extract(epoch FROM since)::float8, until IS NULL, cause "
        "FROM feed_gaps_between(now() - interval '1 day') ORDER BY since"
    )
    assert gaps == [
        ("A", pytest.approx((now - 41 * DAY) / 1e6, abs=0.01), False, "stopped"),
        ("A", pytest.approx((now - DAY // 2) / 1e6, abs=0.01), True, "stopped"),
    ]
