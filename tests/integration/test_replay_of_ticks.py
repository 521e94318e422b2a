"""Stored ticks are replayed: by `db.replay()`, and over the websocket by `tickpipe simulate --from-database`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import tickpipe
from tests.support.capture import SESSION, make_events, ticks
from tests.support.pipeline import Pipeline
from tickpipe import ConfigurationError
from tickpipe.client.database import Database
from tickpipe.client.tick import Tick

EVENTS = make_events(400)
ROWS = "SELECT symbol, price, bid, ask, day_volume, exchange, time FROM prices_real_time WHERE session {} ORDER BY seq"
BEGIN = "1971-01-01"


@pytest.fixture
def stored(pipeline: Pipeline) -> Pipeline:
    pipeline.append(list(ticks(EVENTS, SESSION)))
    pipeline.drain()
    return pipeline


@pytest.fixture
def db(stored: Pipeline) -> Iterator[Database]:
    with tickpipe.connect(stored.database.url, stored.servers.valkey.url, environ={}) as db:
        yield db


def test_replay_has_each_tick_in_the_order_of_receipt(db: Database, stored: Pipeline) -> None:
    with db.replay(BEGIN, speed=0) as replayed:
        found = list(replayed)
    assert [tick.seq for tick in found] == list(range(1, len(EVENTS) + 1))
    ((*row,),) = stored.database.query(f"SELECT {', '.join(Tick._fields)} FROM prices_real_time WHERE seq = 7")
    assert found[6] == Tick._make(row)


def test_replay_of_one_symbol_and_of_a_part(db: Database) -> None:
    symbol = db.symbols()[0]
    ours = [tick for tick in db.replay(BEGIN, speed=0) if tick.symbol == symbol]
    assert list(db.replay(BEGIN, symbols=symbol, speed=0)) == ours
    until = ours[len(ours) // 2].time
    assert list(db.replay(BEGIN, until, symbols=symbol, speed=0)) == [tick for tick in ours if tick.time < until]
    assert len(ours) > 3


def test_replay_is_an_asynchronous_iterator_too(db: Database) -> None:
    async def read() -> list[int]:
        return [tick.seq async for tick in db.replay(BEGIN, speed=0)]

    assert asyncio.run(read()) == list(range(1, len(EVENTS) + 1))


def test_replay_can_be_left_early_and_leaves_no_transaction(db: Database, stored: Pipeline) -> None:
    with db.replay(BEGIN, speed=1e-9) as replayed:
        assert next(replayed).seq == 1
        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert stored.database.query(idle) == [(0,)]


def test_invalid_arguments_are_named(db: Database) -> None:
    with pytest.raises(ConfigurationError, match="speed -1 is not a speed"):
        db.replay("1d", speed=-1)
    with pytest.raises(ConfigurationError, match="no prices of 'X/Y'"):
        db.replay("1d", symbols="X/Y")


def simulate(pipeline: Pipeline, *options: str) -> Any:
    return pipeline.processes.start("tickpipe", "simulate", "--from-database", "--port", "0", *options)


def test_stored_ticks_are_served_over_the_websocket(stored: Pipeline) -> None:
    """A producer receives and stores them again, in a session of its own."""
    symbols = [symbol for (symbol,) in stored.database.query("SELECT DISTINCT symbol FROM prices_real_time")]
    stored.database.query(
        "INSERT INTO feed_events (session, number, at, event, detail) SELECT %s, row_number() OVER (), now(), "
        "'instrument', jsonb_build_object('symbol', s, 'type', 'Common Stock') FROM unnest(%s::text[]) AS s",
        SESSION, symbols,
    )  # fmt: skip
    before = stored.database.query(ROWS.format("= %s"), SESSION)
    server = simulate(stored, "--since", BEGIN, "--speed", "0")
    server.wait_until_said("serving ws://")
    url = server.said().partition("serving ")[2].partition(",")[0]
    stored.consumer()
    producer = stored.producer(url, symbols=symbols)
    stored.wait_until_stored(2 * len(before))
    assert producer.stop() == 0
    assert server.wait() == 0
    assert stored.database.query(ROWS.format("> %s"), SESSION) == before


def test_span_without_ticks_is_refused(stored: Pipeline) -> None:
    server = simulate(stored, "--since", "1970-01-01", "--until", "1970-01-02")
    assert server.wait() == 2
    assert "no ticks are stored from 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z" in server.said()
