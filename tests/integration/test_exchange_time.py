"""A tick with an exchange time in the future hides no later price, and nothing is dropped."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from common.database.client import DatabaseClient
from common.database.migrations import apply
from common.settings import Secret
from tests.support.pipeline import Database, Pipeline
from tests.support.sessions import StoredSession
from tickpipe.dashboard.history import INTERVALS, Charts
from tickpipe.dashboard.quotes import Quotes
from tickpipe.inspect.database import DatabaseReader
from tickpipe.inspect.symbols import SymbolReader

FAR_AHEAD = 4_102_444_700  # in the year 2099


@pytest.fixture(params=["plain", "timescale"])
def backend(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue("database" if request.param == "plain" else "timescale")
    return database


@pytest.fixture
def store(backend: Database) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(backend.url))) as store:
        apply(store)
        yield store


def store_ticks(store: DatabaseClient, symbol: str, *ticks: tuple[float, float]) -> None:
    """Store ticks (exchange time in seconds from now, price), received now in this order."""
    now = time.time()
    session = StoredSession(store, now)
    for seq, (ahead, price) in enumerate(ticks, 1):
        session.store([seq], symbol=symbol, time=str(int(now + ahead)), price=str(price))


def last_price(store: DatabaseClient, symbol: str) -> object:
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT price FROM latest_ticks(%s, 1)", [symbol])
        return (cursor.fetchone() or [None])[0]


@pytest.mark.parametrize("ahead", [100.0, 3600.0, 86_400.0, 2e9])
def test_tick_with_a_future_time_is_not_the_last_price(store: DatabaseClient, ahead: float) -> None:
    store_ticks(store, "A", (-2, 1.0), (ahead, 999.0), (-1, 2.0), (-time.time(), 0.5), (0, 3.0))
    store_ticks(store, "ONLY", (ahead, 7.0))
    assert (last_price(store, "A"), last_price(store, "ONLY"), last_price(store, "NONE")) == (3.0, 7.0, None)


def test_ticks_with_future_times_come_last(store: DatabaseClient) -> None:
    rng = random.Random(1)
    wrong = [(rng.choice([90, 4000, 10**6, 10**9]) + rng.random() * 1000, 999.0) for _ in range(60)]
    right = [(-100.0 + n, float(n)) for n in range(60)]
    ticks = [*wrong, *right]
    rng.shuffle(ticks)
    store_ticks(store, "A", *ticks)
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT price FROM latest_ticks('A', 10)")
        assert [price for (price,) in cursor.fetchall()] == [float(n) for n in range(59, 49, -1)]
        cursor.execute("SELECT count(*) FROM prices_real_time")
        assert cursor.fetchone() == (120,)  # none is dropped


def test_newest_tick_is_the_last_price_despite_a_slow_server_clock(store: DatabaseClient) -> None:
    session = StoredSession(store, time.time() + 600)
    for seq in range(1, 100):
        session.store([seq], symbol="A", price=str(seq))
    assert last_price(store, "A") == 99


def test_instrument_last_seen_is_the_receipt_of_its_newest_tick(store: DatabaseClient) -> None:
    session = StoredSession(store, time.time() - 500)
    session.emit("instrument", 0, symbol="A")
    session.store([1], symbol="A", time=str(FAR_AHEAD))
    session.store([2000], symbol="A")  # 2 s later
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM last_seen)::float8 FROM instruments")
        ((seen,),) = cursor.fetchall()
    assert seen == pytest.approx(session.start + 2, abs=0.001)


def test_dashboard_continues_after_a_tick_with_a_future_time(backend: Database, store: DatabaseClient) -> None:
    with closing(DatabaseReader.read_only(Secret(backend.url))) as database:
        symbols = SymbolReader(database)
        quotes, charts = Quotes(symbols, every=0.0), Charts(symbols, every=0.0)
        read = quotes.read
        store_ticks(store, "A", (-120, 1.0), (FAR_AHEAD - time.time(), 999.0))
        store_ticks(store, "B", (-120, 5.0))
        store_ticks(store, "ONLY", (FAR_AHEAD - time.time(), 7.0))
        assert {name: quote.price for name, quote in read().items()} == {"A": 1.0, "B": 5.0, "ONLY": 7.0}
        store_ticks(store, "A", (-60, 2.0))
        store_ticks(store, "B", (-60, 6.0))
        store_ticks(store, "ONLY", (-60, 8.0))
        found = read()
        assert {name: quote.price for name, quote in found.items()} == {"A": 2.0, "B": 6.0, "ONLY": 8.0}
        assert list(found["ONLY"].closes.values()) == [8.0]
        chart = charts.read("A", INTERVALS["1m"])
        assert [candle.close for candle in chart.candles] == [1.0, 2.0]
        assert [tick.price for tick in chart.ticks] == [2.0, 1.0, 999.0]
        store_ticks(store, "A", (0, 3.0))
        assert [candle.close for candle in charts.read("A", INTERVALS["1m"]).candles][-1] == 3.0


def test_status_shows_the_last_price_received(pipeline: Pipeline) -> None:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        store_ticks(store, "A", (-2, 1.0), (FAR_AHEAD - time.time(), 999.0), (-1, 2.0))
    pipeline.prices.ensure_group()
    status = pipeline.processes.start("tickpipe", "status", "--json")
    assert status.wait() == 0
    (symbol,) = json.loads(status.said())["symbols"]
    assert (symbol["symbol"], symbol["price"], symbol["candles"][-1][3]) == ("A", 2.0, 2.0)
