"""`tickpipe.connect()`: the answers, their types, memory, outages, and how it finds the servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tickpipe
from common.errors import ConfigurationError, DatabaseOutageError, OutageError
from common.settings import Secret
from tests.integration.conftest import skip_or_fail
from tests.support.expected_rows import DAY, MINUTE, Candle, begin_of, by_hand, by_key, equal, ticks
from tests.support.market import NOW, SYMBOLS
from tests.support.pgbouncer import find_pgbouncer, pgbouncer
from tests.support.pipeline import Database as Connection
from tests.support.pipeline import ServerPair
from tests.support.querying import Backend
from tickpipe.client import reader as reading
from tickpipe.client.database import Database, Fill
from tickpipe.inspect import past
from tickpipe.local.addresses import running_servers
from tickpipe.local.servers.embedded import embedded_servers

SINCE = NOW - 4 * DAY
COLUMNS = ["time", "symbol", "price", "day_volume", "bid", "ask", "exchange", "received_at", "session", "seq"]


@pytest.fixture(scope="module")
def plain(database_of_the_module: Connection) -> Backend:
    return Backend(database_of_the_module)


@pytest.fixture(scope="module")
def timescaledb(timescale_of_the_module: Connection) -> Backend:
    return Backend(timescale_of_the_module, timescaledb=True)


@pytest.fixture(params=["plain", "timescaledb"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def db(backend: Backend) -> Iterator[Database]:
    with connected(backend.database.url) as db:
        yield db


def connected(url: str) -> Database:
    return tickpipe.connect(url, environ={}, now=lambda: NOW)


def rows_by_hand(*symbols: str) -> list[tuple[Any, ...]]:
    found = [tick for name in sorted(symbols) for tick in sorted(ticks(name, SINCE), key=by_key)]
    return [tuple(getattr(tick, name) for name in COLUMNS) for tick in found]


def test_ticks_are_those_stored_in_the_order_of_the_key(db: Database) -> None:
    frame = db.ticks(["EUR/USD", "AAPL"], since=SINCE).polars()
    assert frame.columns == list(past.COLUMNS)
    assert frame.select(COLUMNS).rows() == rows_by_hand("EUR/USD", "AAPL")


def test_types_are_as_documented_even_without_rows(db: Database) -> None:
    some, none = (db.ticks("EUR/USD", since, since + DAY) for since in (NOW - DAY, NOW - 30 * DAY))
    assert some.pandas().dtypes.astype(str).to_dict() == none.pandas().dtypes.astype(str).to_dict()
    assert none.polars().schema == some.polars().schema
    assert len(none.pandas()) == 0 < len(some.pandas())
    kinds = some.pandas().dtypes.astype(str)
    assert {kinds[name] for name in ("time", "received_at")} == {"datetime64[us, UTC]"}
    assert {kinds[name] for name in ("price", "day_volume", "bid", "ask", "size")} == {"float64"}
    assert [kinds[name] for name in ("session", "seq", "trade_id")] == ["int64", "int64", "Int64"]


def filled_by_hand(symbol: str, width: timedelta, fill: Fill) -> list[tuple[Any, ...]]:
    candles = {candle.bucket: candle for candle in by_hand(symbol, width, begin_of(SINCE, width))}
    bucket, last = min(candles), max(candles)
    rows, close = list[tuple[Any, ...]](), None
    while bucket <= last:
        price = close if fill == "previous" else None
        empty: Any = (bucket, price, price, price, price, 0, 0.0 if fill == "previous" else None)
        candle = Candle(*candles.get(bucket, empty))
        rows.append((symbol, *candle))
        close = candle.close
        bucket += width
    return rows


@pytest.mark.parametrize("width", [MINUTE, 5 * MINUTE, 90 * MINUTE, DAY])
@pytest.mark.parametrize("fill", ["gaps", "previous"])
def test_filled_candles_have_each_interval_once(
    db: Database, fill: Fill, width: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "America/New_York")  # one of its days has 25 hours
    frame = db.candles(["MSFT", "BTC/USD"], width, SINCE, fill=fill).polars()
    assert equal(frame.rows(), [row for name in ("BTC/USD", "MSFT") for row in filled_by_hand(name, width, fill)])


def test_candles_without_fill_are_those_with_ticks_and_the_first_is_whole(db: Database) -> None:
    frame = db.candles("MSFT", "1h", NOW - timedelta(minutes=100)).polars()
    expected = by_hand("MSFT", timedelta(hours=1), datetime(2025, 11, 4, 15, tzinfo=UTC))
    assert equal(frame.rows(), [("MSFT", *candle) for candle in expected])
    assert frame["ticks"].dtype == pl.Int64


@pytest.mark.parametrize("width", ["1h", "1d"])
def test_long_spans_have_the_candles_of_short_ones(db: Database, width: str) -> None:
    """On TimescaleDB they come from another view."""
    long, short = (db.candles(SYMBOLS, width, NOW - days * DAY).polars() for days in (365, 29))
    assert equal(long.filter(pl.col("bucket") >= NOW - 29 * DAY).rows(), short.rows())
    assert len(long) > len(short) > 0


def test_until_ends_the_candles_that_begin_before_it(db: Database) -> None:
    frame = db.candles("MSFT", "5m", "2025-11-04T16:02", "2025-11-04T16:22").polars()
    assert [at.minute for at in frame["bucket"]] == [0, 5, 10, 15, 20]
    whole = by_hand("MSFT", 5 * MINUTE, datetime(2025, 11, 4, 16, 20, tzinfo=UTC))[0]
    assert frame.row(-1) == ("MSFT", *whole)


def test_symbols_and_last_ticks(db: Database) -> None:
    assert [name for name in db.symbols() if not name.startswith("OTHER")] == sorted(SYMBOLS)
    newest = [max(ticks(name, SINCE), key=by_key) for name in sorted(SYMBOLS)]
    frame = db.last(SYMBOLS).polars()
    assert frame.select("symbol", "time", "price", "seq").rows() == [
        (tick.symbol, tick.time, tick.price, tick.seq) for tick in newest
    ]
    assert db.last("MSFT", since=NOW).polars().rows() == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda db: db.ticks("aapl", "1d"), "no prices of 'aapl' are stored. The nearest: AAPL"),
        (lambda db: db.candles(["MSFT", "EURUSD"], "1m", "1d"), "no prices of 'EURUSD' are stored. The nearest: EUR"),
        (lambda db: db.last("QQQQ"), "no prices of 'QQQQ' are stored. Stored are: AAPL, BTC/USD, EUR/USD, MSFT"),
        (lambda db: db.gaps("APL"), "no prices of 'APL' are stored. The nearest: AAPL"),
        (lambda db: db.ticks([], "1d"), "symbols [] has no symbols. Examples: 'BTC/USD'"),
        (lambda db: db.ticks("AAPL", "soon"), "since 'soon' is not a date or an age. Examples: 2026-11-22"),
        (lambda db: db.ticks("AAPL", "1d", "2d"), "since 2025-11-03T17:30:30Z is not before until 2025-11-02"),
        (lambda db: db.candles("AAPL", "90s", "1d"), "width '90s' is not a width of candles in whole minutes. Ex"),
        (lambda db: db.candles("AAPL", "5 minutes", "1d"), "width '5 minutes' is not a width"),
        (lambda db: db.candles("AAPL", "1m", "1d", fill="zero"), "fill 'zero' is not a way to fill gaps. Use None"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_named_with_the_way_out(db: Database, ask: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ask(db)
    assert str(caught.value).startswith(message)


def test_reads_without_copy_return_the_same(plain: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(plain.database.url) as db:
        copied = db.ticks(SYMBOLS, SINCE).arrow()
        monkeypatch.setattr(reading, "PORTION", 100)

        def refuse(*_: object, **__: object) -> None:
            raise adbc.NotSupportedError("COPY")

        monkeypatch.setattr(adbc, "connect", refuse)
        batches = list(db.ticks(SYMBOLS, SINCE).batches())
    assert {batch.num_rows for batch in batches[:5]} == {100}
    assert pl.concat(map(pl.from_arrow, batches)).equals(pl.from_arrow(copied))  # type: ignore[type-var, arg-type]


def test_reads_through_a_pooler(plain: Backend, folder: Path) -> None:
    try:
        find_pgbouncer()
    except ConfigurationError as error:
        skip_or_fail(error, "pgbouncer")
    with pgbouncer(plain.database.url, folder) as url, connected(url) as db:
        for _ in range(3):  # on any of the pool's connections
            assert db.ticks("EUR/USD", SINCE).polars().select(COLUMNS).rows() == rows_by_hand("EUR/USD")


def test_two_results_are_read_side_by_side_and_one_is_left_unfinished(plain: Backend) -> None:
    with connected(plain.database.url) as db:
        one, other = (db.ticks(name, SINCE).batches() for name in ("AAPL", "MSFT"))
        assert next(one)["symbol"][0].as_py() == "AAPL"
        assert next(other)["symbol"][0].as_py() == "MSFT"
        one.close()  # type: ignore[attr-defined]
        assert sum(batch.num_rows for batch in other) == 0
        assert db.ticks("AAPL", SINCE).arrow().num_rows == len(ticks("AAPL", SINCE))


def test_outage_within_a_result_is_an_outage_error(plain: Backend) -> None:
    many = "SELECT n AS seq FROM generate_series(1, 20000000) AS n"
    with connected(plain.database.url) as db:
        schema = pa.schema([pa.field("seq", pa.int32())])
        batches = db._reader.batches(schema, many, {})
        assert next(batches).num_rows > 0
        plain.database.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tickpipe client' "
            "AND query LIKE '%%generate_series%%' AND pid <> pg_backend_pid()"
        )
        with pytest.raises(DatabaseOutageError, match="the database: "):
            list(batches)
        assert db.symbols()


#: Prints the largest number of KiB that reading this many rows takes.
PEAK = """
import pyarrow as pa, resource, sys, tickpipe
with tickpipe.connect(sys.argv[1], environ={}) as db:
    schema = pa.schema([pa.field("seq", pa.int32()), pa.field("text", pa.string())])
    query = "SELECT n, repeat('x', 90) FROM generate_series(1, %(rows)s) AS n"
    db._reader._can_copy = sys.argv[3] == "copy"
    rows = sum(batch.num_rows for batch in db._reader.batches(schema, query, {"rows": int(sys.argv[2])}))
assert rows == int(sys.argv[2]), rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("way", ["copy", "portions"])
def test_memory_does_not_grow_with_the_rows(plain: Backend, way: str) -> None:
    def peak(rows: int) -> int:
        arguments = [sys.executable, "-c", PEAK, plain.database.url, str(rows), way]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout) // 1024

    few, many = peak(200_000), peak(1_000_000)  # 20 and 100 MB
    assert many - few < 40, f"{few} and {many} MiB"


def test_a_result_can_be_converted_several_times(plain: Backend) -> None:
    with connected(plain.database.url) as db:
        result = db.gaps("AAPL", since="2d")
        assert result.pandas().equals(result.pandas())
        assert pd.isna(result.pandas()["symbol"]).sum() == 1
        assert repr(result) == "<gaps of AAPL: symbol, since, until, cause>"


# Finding the servers, and errors.


def test_secrets_are_in_no_message_and_no_repr(servers: ServerPair) -> None:
    url = servers.database_url("tickpipe").replace("user=tickpipe", "user=nobody_such&password=hunter2secret")
    with pytest.raises(ConfigurationError, match="refuses DATABASE_URL") as caught:
        tickpipe.connect(url, environ={})
    with tickpipe.connect(servers.database_url("tickpipe") + "&password=hunter2secret", environ={}) as db:
        assert "hunter2secret" not in f"{caught.value!r} {caught.value} {db!r} {db.gaps()!r} {vars(db)}"
        assert repr(db).endswith("/tickpipe>")


def test_invalid_url_is_refused_without_its_text() -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a PostgreSQL URL") as caught:
        tickpipe.connect("mysql://user:hunter2secret@host/x", environ={})
    assert "hunter2" not in str(caught.value)


def test_environment_names_the_database(plain: Backend) -> None:
    with tickpipe.connect(environ={"DATABASE_URL": plain.database.url}) as db:
        assert db._reader.url.reveal() == plain.database.url


def test_unnamed_database_that_does_not_answer_says_what_was_searched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.settings.DEFAULT_DATABASE_URL", "postgresql://127.0.0.1:1/tickpipe")
    with pytest.raises(OutageError, match="DATABASE_URL is not set, and no `tickpipe up` runs on this machine"):
        tickpipe.connect(environ={"TICKPIPE_DATA_DIR": str(folder)})
    with pytest.raises(OutageError, match=r"\(DATABASE_URL\)$"):
        tickpipe.connect("postgresql://127.0.0.1:1/tickpipe", environ={})


def test_running_pipeline_is_found_and_real_prices_come_first(folder: Path) -> None:
    environ = {"TICKPIPE_DATA_DIR": str(folder)}
    assert running_servers(environ) == (None, None)
    with embedded_servers(folder / "demo", redis=False) as demo:
        redis_url, database_url = running_servers(environ)
        assert redis_url is None
        assert isinstance(database_url, Secret)
        assert database_url.reveal() == demo.database_url
        with closing(tickpipe.connect(environ=environ)) as db:
            assert db._reader.url.reveal() == demo.database_url
            with pytest.raises(ConfigurationError, match="run `tickpipe migrate`"):
                db.symbols()
        with embedded_servers(folder / "live") as live:
            found = [url.reveal() for url in running_servers(environ) if url]
            assert found == [live.redis_url, live.database_url]
    assert running_servers(environ) == (None, None)
