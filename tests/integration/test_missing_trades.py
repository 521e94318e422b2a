"""Trades are missing by the numbers of an exchange until they are stored, and each is stored once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest

from common import threads
from common.database.client import DatabaseClient
from common.settings import Secret
from common.tick import Tick
from producer.feeds import VENDORS
from tests.support.candles import refresh, store_of
from tests.support.pipeline import Database, ServerPair
from tests.support.sessions import StoredSession
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.backfill import trades

START = 1_760_000_000.0
BEFORE = datetime.fromtimestamp(START - 60, UTC)
COINBASE = VENDORS["coinbase"]


@pytest.fixture
def client(backend: Database) -> Iterator[DatabaseClient]:
    with closing(store_of(backend)) as client:
        yield client


@pytest.fixture
def plain(database: Database) -> Iterator[DatabaseClient]:
    """For functions that read feed events and few ticks: they are the same on both servers."""
    with closing(store_of(database)) as client:
        yield client


class Trades:
    """Sessions of one symbol. Trade N is a second after the first one, and has the size N."""

    def __init__(self, client: DatabaseClient) -> None:
        self._client = client
        self._session: StoredSession | None = None
        self._seq = 0

    def begin(self, after: float, first: int, symbol: str = "BTC/USD") -> StoredSession:
        """Begin a session whose first trade has this number."""
        self._session, self._seq = StoredSession(self._client, START + after), 0
        self._session.emit("started", 0, feed="coinbase", symbols=[symbol])
        self._session.emit("subscribed", 0, symbols=[symbol])
        self._session.emit("instrument", first - after, symbol=symbol, exchange="Coinbase", trade_id=str(first))
        return self._session

    def fields(self, number: int) -> dict[str, str]:
        return {
            "time": str(START + number), "exchange": "Coinbase", "size": str(number), "side": "buy",
            "trade_id": str(number), "received": str(round((START + number) * 1e6) + 5),
        }  # fmt: skip

    def store(self, *numbers: int) -> None:
        assert self._session is not None
        for number in numbers:
            self._seq += 1
            self._session.store([self._seq], **self.fields(number))

    def skip(self, first: int, last: int) -> None:
        """Record that these were not received."""
        assert self._session is not None
        since, until = (round((START + number) * 1e6) for number in (first - 1, last + 1))
        detail = {"first_id": first, "last_id": last, "since": since, "until": until}
        self._session.emit("skipped", last, symbol="BTC/USD", exchange="Coinbase", **detail)

    def requested(self, *numbers: int) -> list[Tick]:
        """These trades as they are requested from the exchange."""
        values = {
            "session": "0", "seq": "0", "symbol": "BTC/USD", "price": "1.5", "day_volume": "", "bid": "", "ask": "",
        }  # fmt: skip
        return [Tick(**{**values, **self.fields(number), "received": "0"}) for number in numbers]


def missing(client: DatabaseClient) -> list[tuple[int, int]]:
    return [each.range[:2] for each in trades.read(client, COINBASE, BEFORE)]


def stored(database: Database) -> list[tuple[int, bool]]:
    """The number of each trade, and whether it was requested."""
    return database.query("SELECT trade_id, source IS NOT NULL FROM prices_real_time ORDER BY trade_id, session")


def test_trades_between_two_sessions_are_missing(backend: Database, client: DatabaseClient) -> None:
    """Whether the producer was stopped or killed between them does not matter."""
    found = Trades(client)
    found.begin(0, 1)
    found.store(1, 2, 3)
    found.begin(8, 9)
    found.store(9, 10)
    found.begin(20, 11)  # the next one follows directly
    found.store(11)
    assert missing(client) == [(4, 8)]
    gaps = "SELECT symbol, cause FROM feed_gaps WHERE cause LIKE 'venue%'"
    assert backend.query(gaps) == [("BTC/USD", "venue numbers skipped: 4 to 8")]
    assert trades.keep(client, found.requested(4, 5, 7, 8)) == 4
    assert backend.query("SELECT first_id, last_id, missing FROM skipped_trades(0)") == [(4, 8, 1)]
    assert trades.keep(client, found.requested(4, 5, 6)) == 1
    assert missing(client) == []
    assert backend.query(gaps) == []


def test_run_over_midnight_has_no_second_gap(plain: DatabaseClient) -> None:
    """The producer has recorded the jump itself."""
    found = Trades(plain)
    found.begin(0, 1)
    found.store(1, 2)
    found.begin(5, 6)
    found.skip(3, 5)
    found.store(6)
    assert missing(plain) == [(3, 5)]


def test_unsubscribed_symbol_is_not_missing(plain: DatabaseClient) -> None:
    found = Trades(plain)
    session = found.begin(0, 1)
    found.store(1, 2)
    session.emit("unsubscribed", 3, symbols=["BTC/USD"])
    found.begin(8, 9)
    found.store(9)
    assert missing(plain) == []


def test_numbers_that_begin_again_are_not_missing(plain: DatabaseClient) -> None:
    found = Trades(plain)
    found.begin(90, 100)
    found.store(100)
    found.begin(200, 1)
    found.store(1)
    assert missing(plain) == []


def test_feed_without_numbers_has_nothing_missing(database: Database, plain: DatabaseClient) -> None:
    for after in (0, 10):
        session = StoredSession(plain, START + after)
        session.emit("started", 0, feed="twelvedata", symbols=["BTC/USD"])
        session.emit("instrument", 1, symbol="BTC/USD", exchange="Coinbase")
        session.store(range(1, 4))
    assert database.query("SELECT * FROM skipped_trades(0)") == []


def test_trade_that_a_consumer_stores_later_replaces_its_copy(backend: Database, client: DatabaseClient) -> None:
    """It was in a spool when it was requested. The row of the producer stays: `verify` counts it."""
    found = Trades(client)
    found.begin(0, 1)
    found.store(1, 2)
    found.skip(3, 6)
    found.store(7)
    assert trades.keep(client, found.requested(3, 4, 5, 6)) == 4
    refresh(backend)
    found.store(4, 6)
    assert stored(backend) == [(1, False), (2, False), (3, True), (4, False), (5, True), (6, False), (7, False)]
    refresh(backend)
    assert backend.query("SELECT sum(ticks), sum(volume) FROM candles_1m") == [(7, 28.0)]
    assert trades.keep(client, found.requested(3, 4, 5, 6)) == 0, "and the other way round"


def test_only_the_copy_of_the_same_trade_is_removed(backend: Database, client: DatabaseClient) -> None:
    found = Trades(client)
    found.begin(0, 1)
    found.store(1)
    copy = found.requested(3)[0]
    others = [copy._replace(exchange="Kraken"), copy._replace(time=str(START + 4), trade_id="4")]
    for other in others:
        trades.keep(client, [other])
    found.store(3)
    assert backend.query("SELECT exchange, trade_id FROM prices_real_time WHERE session = 0 ORDER BY trade_id") == [
        ("Kraken", 3), ("Coinbase", 4)
    ]  # fmt: skip


def test_time_that_the_other_interface_rounds_is_the_same_trade(backend: Database, client: DatabaseClient) -> None:
    found = Trades(client)
    found.begin(0, 1)
    found.store(1)
    trades.keep(client, [found.requested(2)[0]._replace(time=f"{START + 2}000499")])
    found.store(2)
    assert stored(backend) == [(1, False), (2, False)]


def test_request_waits_for_a_consumer_that_is_storing_the_same_trade(
    database: Database,
) -> None:
    with closing(store_of(database)) as client, closing(store_of(database)) as other:
        found = Trades(client)
        found.begin(0, 1)
        found.store(1)
        session = StoredSession(client, START)
        with client.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO prices_real_time (time, symbol, price, exchange, received_at, session, seq, trade_id) "
                "VALUES (to_timestamp(%s), 'BTC/USD', 1, 'Coinbase', now(), %s, 2, 2)", (START + 2, session.id)
            )  # fmt: skip
            requesting = threads.in_thread(trades.keep, other, found.requested(2))
            wait_for(database.waiting)
        requesting.result(timeout=PATIENCE)
    assert stored(database) == [(1, False), (2, False)]


def test_consumer_that_may_not_delete_leaves_copies_to_the_next_backfill(
    new_role: Callable[[], str], fresh_database: Database, servers: ServerPair
) -> None:
    role = new_role()
    fresh_database.query(f"GRANT INSERT ON prices_real_time, feed_events, dead_letters TO {role}")
    ((name,),) = fresh_database.query("SELECT current_database()")
    with (
        closing(store_of(fresh_database)) as owner,
        closing(DatabaseClient(Secret(servers.database_url(name, user=role)))) as restricted,
    ):
        found = Trades(restricted)
        found.begin(0, 1)
        found.store(1)
        trades.keep(owner, found.requested(2, 3))
        found.store(2)
        assert stored(fresh_database) == [(1, False), (2, True), (2, False), (3, True)]
        trades.drop_copies(owner, BEFORE)
        assert stored(fresh_database) == [(1, False), (2, False), (3, True)]
