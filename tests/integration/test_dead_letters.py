"""`tickpipe dead-letters` lists dead letters and requeues them without a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest

from common import tick
from common.database.client import DatabaseClient
from common.settings import Secret
from common.streams.stream import MAX_FIELDS, Stream
from consumer.tables import PRICES
from consumer.writer import Writer
from tests.support.pipeline import Pipeline
from tests.support.sessions import StoredSession, entry
from tickpipe.maintenance.dead_letters import Filter, find, retry


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        pipeline.prices.ensure_group()
        pipeline.feed.ensure_group()
        yield store


@pytest.fixture
def session(store: DatabaseClient) -> StoredSession:
    """Store 1 and 3; make 2 and 4 dead letters with different reasons."""
    session = StoredSession(store, datetime(2026, 1, 5, tzinfo=UTC).timestamp())
    session.store([1, 3])
    session.store([2], price="n/a")
    session.store([4], symbol="X" * 65)
    return session


def test_dead_letter_keeps_the_entry_byte_for_byte(store: DatabaseClient, session: StoredSession) -> None:
    raw = [b"session", b"%d" % session.id, b"seq", b"9", b"odd\xff", b"\x00\xfe \xf0\x9f"]
    Writer(store).insert_batch(PRICES, "prices", [entry({})._replace(parts=raw)])
    letter = find(store, Filter(reason="FIELDS are not"), limit=10)[0]
    assert letter.raw == raw
    assert (letter.session, letter.seq, letter.stream) == (session.id, 9, "prices")


@pytest.mark.parametrize("width", [1, MAX_FIELDS])
def test_entry_with_a_duplicate_field_name_is_requeued_unchanged(
    store: DatabaseClient, pipeline: Pipeline, width: int
) -> None:
    raw = [b"price", b"1"] * width + [b"price", b"", b"odd\xff", b"\x00"]
    pipeline.prices.append_parts([raw])
    assert pipeline.prices.read(1)[0].parts == raw
    pipeline.drain()  # claims it
    (letter,) = find(store, Filter(), limit=10)
    assert letter.raw == raw
    assert letter.text.endswith("price=1 price= odd\\xff=\x00")
    assert list(retry(store, lambda name: Stream(pipeline.redis, name), Filter())) == [1]
    assert pipeline.prices.read(1)[0].parts == raw


def test_repeated_refusal_is_one_dead_letter(store: DatabaseClient, session: StoredSession) -> None:
    session.store([2], price="n/a")
    assert len(find(store, Filter(), limit=10)) == 2


def test_list_accepts_filters(store: DatabaseClient, session: StoredSession, pipeline: Pipeline) -> None:
    assert [letter.seq for letter in find(store, Filter(reason="price"), limit=10)] == [2]
    assert [letter.seq for letter in find(store, Filter(session=session.id), limit=1)] == [2]
    assert find(store, Filter(session=1), limit=10) == []
    said = pipeline.processes.start("tickpipe", "dead-letters", "list")
    assert said.wait() == 0
    assert "price is not a finite number: 'n/a'" in said.said()
    assert "2 dead letters" in said.said()


@pytest.mark.usefixtures("session")
def test_entry_that_became_valid_is_stored_on_retry(store: DatabaseClient, pipeline: Pipeline) -> None:
    name = "prices_real_time_symbol_check"
    pipeline.database.query(f"ALTER TABLE prices_real_time DROP CONSTRAINT {name}")
    try:
        again = pipeline.processes.start("tickpipe", "dead-letters", "retry", "--reason", "symbol")
        assert again.wait() == 0
        assert "1 dead letter put back" in again.said()
        pipeline.drain()
    finally:
        check = "CHECK (char_length(symbol) BETWEEN 1 AND 64) NOT VALID"
        pipeline.database.query(f"ALTER TABLE prices_real_time ADD CONSTRAINT {name} {check}")
    assert pipeline.database.query("SELECT seq FROM prices_real_time ORDER BY seq") == [(1,), (3,), (4,)]
    assert [letter.seq for letter in find(store, Filter(), limit=10)] == [2]


@pytest.mark.usefixtures("session")
def test_entry_still_invalid_on_retry_is_a_dead_letter_again(store: DatabaseClient, pipeline: Pipeline) -> None:
    """A consumer refuses the entry again before the old dead letter is deleted. The new one must be kept."""
    consumer = pipeline.consumer("--claim-idle", "0.5")

    class Slow(Stream):
        def append_parts(self, entries: object) -> None:
            super().append_parts(entries)  # type: ignore[arg-type]
            pipeline.prices.ensure_group()
            for _ in range(200):  # until the consumer waits for this transaction
                if pipeline.database.waiting():
                    return
                pipeline.database.query("SELECT pg_sleep(0.05)")
            pytest.fail("the consumer never came to the dead letter")

    consumer.wait_until_said("reads prices")
    assert sum(retry(store, lambda name: Slow(pipeline.redis, name), Filter(reason="price"))) == 1
    assert consumer.stop() == 0
    assert sorted(letter.seq or 0 for letter in find(store, Filter(), limit=10)) == [2, 4]


@pytest.mark.usefixtures("session")
def test_crash_during_retry_never_loses_a_dead_letter(store: DatabaseClient, pipeline: Pipeline) -> None:
    class Crashing(Stream):
        def append_parts(self, entries: object) -> None:
            super().append_parts(entries)  # type: ignore[arg-type]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(retry(store, lambda name: Crashing(pipeline.redis, name), Filter()))
    assert pipeline.appended() == 2
    pipeline.drain()
    assert sorted(letter.seq or 0 for letter in find(store, Filter(), limit=10)) == [2, 4]


def test_retry_of_more_than_one_batch_requeues_each_entry_once(store: DatabaseClient, pipeline: Pipeline) -> None:
    many = StoredSession(store, datetime(2026, 1, 6, tzinfo=UTC).timestamp())
    many.store(range(1, 2502), price="n/a")
    assert list(retry(store, lambda name: Stream(pipeline.redis, name), Filter())) == [1000, 1000, 501]
    assert pipeline.appended() == 2501
    assert tick.decode(pipeline.prices.read(1)[0].fields or {}).seq == "1"
