"""`tickpipe backfill` fills gaps with bars of the simulator in a real database."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from common.database.client import DatabaseClient
from common.settings import Secret
from tests.support.faults import FaultySimulator
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.sessions import StoredSession
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import SimulatorConfig

MINUTE, HOUR = 60, 3600
KEY = "key-of-the-test"
DOWN = (503, {"code": 503, "message": "maintenance", "status": "error"})
CLOSED = (400, {"code": 400, "message": "No data is available on the specified dates.", "status": "error"})
#: Moves all times one hour back.
AN_HOUR_BACK = """
UPDATE prices_real_time SET session = session - 3600000000, time = time - interval '1 hour',
                            received_at = received_at - interval '1 hour';
UPDATE feed_events SET session = session - 3600000000, at = at - interval '1 hour',
    detail = CASE WHEN detail ? 'last_frame' THEN jsonb_set(
        detail, '{last_frame}', to_jsonb((detail ->> 'last_frame')::bigint - 3600000000)) ELSE detail END;
"""


@pytest.fixture
def simulator() -> Iterator[FaultySimulator]:
    with FaultySimulator(SimulatorConfig(rate=100, seed=1, api_key=KEY)) as running:
        yield running


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        yield store


@pytest.fixture
def start() -> int:
    """The start of a minute two hours ago."""
    return int(time.time()) // MINUTE * MINUTE - 2 * HOUR


def begun(store: DatabaseClient, start: float, *symbols: str) -> StoredSession:
    session = StoredSession(store, start)
    session.emit("started", 0, feed="twelvedata", symbols=symbols)
    session.emit("connected", 0)
    session.emit("subscribed", 0, symbols=symbols)
    return session


def blind(session: StoredSession, since: float, until: float, *symbols: str) -> None:
    """Record a lost connection and its return, in seconds after the session start."""
    session.emit("disconnected", since, cause="reset", last_frame=round((session.start + since) * 1e6))
    session.emit("subscribed", until, symbols=symbols)


def backfill(pipeline: Pipeline, simulator: FaultySimulator, *options: str, **environ: str) -> Running:
    return pipeline.processes.start("tickpipe", "backfill", "--rest-url", simulator.rest_url, *options, **environ)


def said(running: Running, status: int = 0) -> list[str]:
    """The last output line after this exit status. The output must not contain the API key."""
    assert running.wait(2 * PATIENCE) == status, running.said()
    assert KEY not in running.said()
    assert "Traceback" not in running.said()
    return running.last_log_line()


def minutes(pipeline: Pipeline, source: str, start: float, symbol: str = "BTC/USD") -> list[int]:
    """The minutes after `start` that have a candle from this source."""
    rows = pipeline.database.query(
        "SELECT bucket FROM candles_1m_filled WHERE symbol = %s AND source = %s ORDER BY bucket", symbol, source
    )
    return [int(bucket.timestamp() - start) // MINUTE for (bucket,) in rows]


def test_backfill_fills_the_candles_of_a_lost_connection(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    symbols = ["BTC/USD", "AAPL"]
    producer = pipeline.producer(simulator.url, symbols=symbols)
    wait_for(lambda: pipeline.appended() > 20, message="prices flow")
    simulator.close_all()
    wait_for(lambda: sum(event.event == "subscribed" for event in pipeline.feed_entries()) == 2, message="it is back")
    before = pipeline.appended()
    wait_for(lambda: pipeline.appended() > before + 20, message="prices flow again")
    assert producer.stop() == 0
    pipeline.drain()
    pipeline.database.query(AN_HOUR_BACK)
    candles = pipeline.database.query("SELECT * FROM candles_1m ORDER BY symbol, bucket")

    (line,) = said(backfill(pipeline, simulator))
    first, last = pipeline.database.query(
        "SELECT extract(epoch FROM date_trunc('minute', min(time)))::bigint,"
        " extract(epoch FROM date_trunc('minute', now()))::bigint FROM prices_real_time"
    )[0]
    for symbol in symbols:
        filled = sorted(minutes(pipeline, "ticks", first, symbol) + minutes(pipeline, "backfill", first, symbol))
        assert filled == list(range(len(filled)))  # each minute once, from the first tick …
        assert 0 <= (last - first) // MINUTE - len(filled) <= 2  # … to the last complete minute
    bars = pipeline.database.count("candles_backfill")
    assert line == f"stored {bars} bars of 2 symbols in 2 gaps"
    assert pipeline.database.query("SELECT * FROM candles_1m ORDER BY symbol, bucket") == candles
    assert [call["symbol"] for call in simulator.calls] == ["AAPL", "BTC/USD"]
    assert [call.get("exchange") for call in simulator.calls] == ["NASDAQ", None]


def test_minutes_with_gaps_have_vendor_bars_and_others_have_ticks(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int
) -> None:
    session = begun(store, start, "BTC/USD")
    for seq in range(1, 31):  # one every 20 s
        session.store([seq], time=str(start + 20 * seq), received=str((start + 20 * seq) * 1_000_000))
    blind(session, 2 * MINUTE + 30, 5 * MINUTE + 1, "BTC/USD")
    session.emit("stopped", 10 * MINUTE, last_seq=30)
    begun(store, start + 10 * MINUTE, "BTC/USD").emit("unsubscribed", 1, symbols=["BTC/USD"])
    assert said(backfill(pipeline, simulator)) == ["stored 4 bars of 1 symbol in 1 gap"]
    assert minutes(pipeline, "backfill", start) == [2, 3, 4, 5]
    assert minutes(pipeline, "ticks", start) == [0, 1, 6, 7, 8, 9, 10]
    rows = pipeline.database.query(
        "SELECT open, ticks, source FROM candles_1m_filled WHERE bucket >= to_timestamp(%s) ORDER BY bucket LIMIT 2",
        start + MINUTE,
    )
    assert rows[0] == (1.5, 3, "ticks")
    assert rows[1][0] > 10_000
    assert rows[1][1:] == (None, "backfill")


def test_minutes_without_bars_are_not_requested_again(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int
) -> None:
    session = begun(store, start, "AAPL", "BTC/USD")
    blind(session, 100, 400, "AAPL", "BTC/USD")
    session.emit("unsubscribed", 500, symbols=["AAPL", "BTC/USD"])
    simulator.answer_calls(CLOSED)  # for the first symbol, AAPL
    assert said(backfill(pipeline, simulator)) == ["stored 6 bars of 1 symbol in 2 gaps"]
    assert len(simulator.calls) == 2
    assert said(backfill(pipeline, simulator)) == ["stored 0 bars of 0 symbols in 0 gaps"]
    assert len(simulator.calls) == 2


def test_recent_minutes_without_bars_are_requested_again(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient
) -> None:
    start = int(time.time()) // MINUTE * MINUTE - 20 * MINUTE
    session = begun(store, start, "AAPL", "BTC/USD")
    blind(session, 100, 400, "AAPL", "BTC/USD")
    session.emit("unsubscribed", 500, symbols=["AAPL", "BTC/USD"])
    simulator.answer_calls(CLOSED)
    said(backfill(pipeline, simulator))
    assert said(backfill(pipeline, simulator)) == ["stored 6 bars of 1 symbol in 1 gap"]
    assert [call["symbol"] for call in simulator.calls] == ["AAPL", "BTC/USD", "AAPL"]


def test_lost_prices_are_a_gap_of_every_covered_symbol(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int
) -> None:
    session = begun(store, start, "BTC/USD", "ETH/USD")
    session.emit("unsubscribed", 100, symbols=["ETH/USD"])
    for since, until in ((70, 70), (200, 250)):
        lost = {"since": (start + since) * 1_000_000, "until": (start + until) * 1_000_000}
        session.emit("overflow", 300, first_seq=7, last_seq=9, **lost, cause="spool full")
    session.emit("unsubscribed", 400, symbols=["BTC/USD"])
    assert said(backfill(pipeline, simulator)) == ["stored 4 bars of 2 symbols in 3 gaps"]
    assert len(simulator.calls) == 2
    assert minutes(pipeline, "backfill", start) == [1, 3, 4]
    assert minutes(pipeline, "backfill", start, "ETH/USD") == [1]


def test_since_and_symbols_limit_the_backfill(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int
) -> None:
    session = begun(store, start, "BTC/USD", "ETH/USD", "RY")
    blind(session, 0, 10 * MINUTE, "BTC/USD", "ETH/USD", "RY")
    session.emit("unsubscribed", 700, symbols=["BTC/USD", "ETH/USD", "RY"])
    moment = pipeline.database.query(
        "SELECT to_char(to_timestamp(%s) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI')", start + 7 * MINUTE
    )
    options = ("--since", moment[0][0], "--symbols", "btc/usd,RY:TSX")
    assert said(backfill(pipeline, simulator, *options)) == ["stored 6 bars of 2 symbols in 2 gaps"]
    assert minutes(pipeline, "backfill", start) == [7, 8, 9]
    assert said(backfill(pipeline, simulator, "--symbols", "ETH/USD")) == ["stored 10 bars of 1 symbol in 1 gap"]


def test_unknown_symbol_is_reported_and_others_are_filled(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int
) -> None:
    session = begun(store, start, "BTC/USD", "AAAA")
    blind(session, 0, 60, "BTC/USD", "AAAA")
    session.emit("unsubscribed", 500, symbols=["BTC/USD", "AAAA"])
    running = backfill(pipeline, simulator)
    assert said(running, 1) == [
        "stored 1 bar of 1 symbol in 1 gap",
        "tickpipe: Twelve Data refuses bars of AAAA. Name the other symbols with --symbols",
    ]
    assert "symbol refused: AAAA: 127.0.0.1:" in running.said()


def test_refused_key_stops_the_backfill_immediately(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int
) -> None:
    blind(begun(store, start, "BTC/USD", "ETH/USD"), 0, 60, "BTC/USD", "ETH/USD")
    words = said(backfill(pipeline, simulator, TWELVE_DATA_API_KEY="wrong"), 2)
    assert words[-1].startswith("tickpipe: Twelve Data refuses the API key: check TWELVE_DATA_API_KEY.")
    assert len(simulator.calls) == 1


def test_backfill_keeps_stored_bars_and_resumes_after_an_outage(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int
) -> None:
    session = begun(store, start, "BTC/USD", "ETH/USD")
    blind(session, 0, 60, "BTC/USD", "ETH/USD")
    session.emit("unsubscribed", 70, symbols=["BTC/USD", "ETH/USD"])
    simulator.answer_calls((200, {"meta": {}, "values": [], "status": "ok"}), *[DOWN] * 5)
    running = backfill(pipeline, simulator)
    first, last = said(running, 1)
    assert first == "stored 0 bars of 0 symbols in 1 gap"
    assert last.endswith("says 503: maintenance")
    assert running.said().count("says 503: maintenance; attempt ") == 4
    assert said(backfill(pipeline, simulator)) == ["stored 1 bar of 1 symbol in 1 gap"]
    assert [call["symbol"] for call in simulator.calls] == ["BTC/USD", *["ETH/USD"] * 6]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_backfill_stopped_while_waiting_for_credits_keeps_stored_bars(
    pipeline: Pipeline, simulator: FaultySimulator, store: DatabaseClient, start: int, number: signal.Signals
) -> None:
    session = begun(store, start, "BTC/USD", "ETH/USD")
    blind(session, 0, 60, "BTC/USD", "ETH/USD")
    session.emit("unsubscribed", 70, symbols=["BTC/USD", "ETH/USD"])
    running = backfill(pipeline, simulator, "--credits-per-minute", "1")
    wait_for(lambda: pipeline.database.count("candles_backfill") == 1, message="the first answer is stored")
    running.signal(number)
    assert said(running, 1) == [
        "stored 1 bar of 1 symbol in 1 gap",
        "tickpipe: The backfill was stopped. Stored bars are kept; run it again for the rest.",
    ]
    assert said(backfill(pipeline, simulator)) == ["stored 1 bar of 1 symbol in 1 gap"]
    assert [call["symbol"] for call in simulator.calls] == ["BTC/USD", "ETH/USD"]


def test_backfill_without_a_schema_is_a_configuration_error(
    empty_pipeline: Pipeline, simulator: FaultySimulator
) -> None:
    words = said(backfill(empty_pipeline, simulator), 2)
    assert "run `tickpipe migrate`" in words[-1]
    assert simulator.calls == []


def test_filters_use_the_indexes_of_ticks_and_bars(pipeline: Pipeline) -> None:
    pipeline.database.query("SET enable_seqscan = off")
    rows = pipeline.database.query(
        "EXPLAIN SELECT * FROM candles_1m_filled WHERE symbol = 'A' AND bucket >= '2026-11-22' ORDER BY bucket LIMIT 9"
    )
    plan = " ".join(line for (line,) in rows)
    of_ticks = re.search(r"prices_real_time_pkey on prices_real_time p .*?Index Cond: \((.*?\"time\" >= )", plan)
    of_bars = re.search(r"candles_backfill_pkey.*?Index Cond: (\S+ = \S+) AND (\S+ >= \S+)", plan)
    assert of_ticks
    assert of_bars
    assert "AND (symbol = 'A'::text) AND" in of_ticks[1]  # beside the symbols that are known
    assert of_bars[1] == "((symbol = 'A'::text)"
    assert of_bars[2] == "(bucket >= '2026-11-22"
