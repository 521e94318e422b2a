"""Consecutive signs of life of a session become one row, and no number is lost or hidden by that."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import feed_event, threads
from common.database.client import DatabaseClient
from common.database.migrations import migrate, read_migrations
from common.settings import Secret
from common.streams.stream import Stream
from consumer.tables import FEED
from consumer.writer import Writer
from tests.support.pipeline import Database, Pipeline
from tests.support.sessions import StoredSession, entry
from tests.support.waiting import PATIENCE

START = 1_700_000_000_000_000
Numbers = Sequence[tuple[int, bool]]  # number, and whether it is a sign of life


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        yield store


def deliver(store: DatabaseClient, numbers: Numbers) -> int:
    """Store these feed events in one batch. Returns how many are new."""
    events = [
        feed_event.make(START, number, START + number, "alive" if alive else "connected", {"last_seq": number})
        for number, alive in numbers
    ]
    return (
        Writer(store).insert_batch(FEED, "prices:feed", [entry(feed_event.encode(event)) for event in events]).inserted
    )


def spans(database: Database) -> list[tuple[int, int]]:
    """First and last number of each row, in order."""
    return database.query("SELECT coalesce(first_number, number), number FROM feed_events ORDER BY number")


def runs(numbers: Numbers) -> list[tuple[int, int]]:
    """The rows that are expected: each run of signs of life, and each other event."""
    found: list[tuple[int, int]] = []
    previous = False
    for number, alive in sorted(set(numbers)):
        if alive and previous and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
        previous = alive
    return found


@st.composite
def deliveries(draw: st.DrawFn) -> list[Numbers]:
    """Batches in any order, with repeats and gaps."""
    kinds = draw(st.lists(st.booleans(), min_size=1, max_size=12))
    events = list(enumerate(kinds, 1))
    return draw(
        st.lists(st.lists(st.sampled_from(events), min_size=1, max_size=6, unique=True), min_size=1, max_size=6)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deliveries())
def test_any_order_of_delivery_gives_the_same_rows(
    pipeline: Pipeline, store: DatabaseClient, batches: list[Numbers]
) -> None:
    pipeline.database.query("TRUNCATE feed_events")
    known: set[tuple[int, bool]] = set()
    for batch in batches:
        assert deliver(store, batch) == len(set(batch) - known)
        known |= set(batch)
    assert spans(pipeline.database) == runs([event for batch in batches for event in batch])


def test_newest_sign_of_life_counts(pipeline: Pipeline, store: DatabaseClient) -> None:
    session = StoredSession(store, time.time() - 100)
    session.emit("started", 0, feed="twelvedata", symbols=["BTC/USD"])
    for count in range(1, 11):
        session.checkpoint("alive", 5 * count, last_seq=count * 100)
    ((events, last_number, last_seq, idle),) = pipeline.database.query(
        "SELECT events, last_number, last_seq, extract(epoch FROM last_seen_at - started_at)::int FROM feed_sessions"
    )
    assert (events, last_number, last_seq, idle) == (11, 11, 1000, 50)
    assert pipeline.database.count("feed_events") == 2


def test_lost_sign_of_life_is_missing(pipeline: Pipeline, store: DatabaseClient) -> None:
    """Its stream has lost it: there may be more that is lost."""
    session = StoredSession(store, time.time() - 100)
    session.emit("started", 0, feed="twelvedata", symbols=["BTC/USD"])
    for count in range(1, 5):
        session.checkpoint("alive", 5 * count, last_seq=0)
    session.skip("alive", 25, to=Stream(pipeline.prices.client, "lost"), last_seq=0)  # number 6
    session.checkpoint("alive", 30, last_seq=0)
    session.checkpoint("stopped", 35, last_seq=0)
    verify = pipeline.processes.start("tickpipe", "verify", "--json", "--claim-idle", "0")
    assert verify.wait() == 1
    assert verify.json()[0]["missing_events"] == [[6, 6]]
    assert pipeline.database.count("feed_events") == 4


def test_several_consumers_lose_no_number(pipeline: Pipeline, store: DatabaseClient) -> None:
    """They insert and merge the same rows at the same time, in any order."""
    rng = random.Random(1)
    numbers = [(number, number % 40 != 0) for number in range(1, 400)]
    shares = [rng.sample(numbers, 390) for _ in range(4)]

    def consume(share: Numbers) -> None:
        with closing(DatabaseClient(Secret(pipeline.database.url))) as own:
            for first, last in pairwise(range(0, len(share) + 1, 30)):
                deliver(own, share[first:last])

    working = [threads.in_thread(consume, share) for share in shares]
    for each in working:
        each.result(timeout=PATIENCE)
    deliver(store, [(401, True)])  # merges what was committed at the same time
    expected = runs([*(event for share in shares for event in share), (401, True)])
    assert spans(pipeline.database) == expected


def test_role_that_may_only_insert_stores_each_sign_of_life(pipeline: Pipeline) -> None:
    role = "inserter"
    pipeline.database.query(f"CREATE ROLE {role} LOGIN")
    try:
        pipeline.database.query(f"GRANT INSERT ON feed_events TO {role}")
        url = pipeline.database.url.replace("user=tickpipe", f"user={role}")
        assert role in url
        with closing(DatabaseClient(Secret(url))) as store:
            deliver(store, [(1, True), (2, True)])
    finally:
        pipeline.database.query(f"DROP OWNED BY {role}")
        pipeline.database.query(f"DROP ROLE {role}")
    assert spans(pipeline.database) == [(1, 1), (2, 2)]


def test_rows_from_before_are_merged_by_the_migration(empty_database: Database) -> None:
    before = [each for each in read_migrations() if each.name < "0050" and not each.timescaledb]
    with closing(psycopg2.connect(empty_database.url)) as connection, connection:
        migrate(connection, before)
    empty_database.query(
        "INSERT INTO feed_events (session, number, at, event, detail) "
        "SELECT session, number, to_timestamp(number), CASE number % 100 WHEN 0 THEN 'connected' ELSE 'alive' END, "
        "jsonb_build_object('last_seq', number) FROM generate_series(1, 3) session, generate_series(1, 250) number"
    )
    with closing(psycopg2.connect(empty_database.url)) as connection, connection:
        migrate(connection, [each for each in read_migrations() if not each.timescaledb])
    assert spans(empty_database) == sorted(
        [(1, 99), (100, 100), (101, 199), (200, 200), (201, 250)] * 3, key=lambda span: span[1]
    )
