"""The feed reconnects after every fault of the server, on one connection at a time, without a gap in its numbers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import logging
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websocket import ABNF

from common import clock, threads
from common.errors import ConfigurationError
from common.proxy import Proxy
from common.settings import Secret
from common.threads import in_thread
from producer.config import FeedConfig
from producer.connection import ClosedByServerError, Connection
from producer.feed import Feed, NothingSubscribedError, RefusedKeyError
from producer.feeds.twelvedata import TwelveData
from producer.feeds.vendor import decode_frame
from producer.queue import EventQueue
from producer.reconnect import Reconnect
from producer.session import MAX_AHEAD, PriceEvent
from tests.support.faults import FaultySimulator
from tests.support.http_proxy import http_proxy
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.random_walk import Event

KEY = "s3cr3t-k3y"
DAY = 86_400_000_000
#: Times of the feed, shortened for tests, in seconds.
QUICK: dict[str, Any] = {
    "heartbeat_every": 0.2,
    "heartbeat_timeout": 0.3,
    "ping_after": 0.3,
    "handshake_timeout": 0.3,
    "alive_every": 0.1,
}
#: For tests of one connection, which a busy machine must not end.
PATIENT: dict[str, Any] = {"heartbeat_timeout": PATIENCE, "ping_after": PATIENCE, "handshake_timeout": PATIENCE}


class FeedRun:
    """A feed that runs in a thread, and the events in its queue."""

    def __init__(
        self,
        url: str,
        symbols: str,
        *,
        bound: int = 10**6,
        api_key: Callable[[], Secret] = lambda: Secret(KEY),
        clock: Callable[[], int] = clock.microseconds,
        **config: Any,
    ) -> None:
        self.queue = EventQueue(bound)
        self.feed = Feed(
            FeedConfig(url=url, **QUICK | config),
            api_key=api_key,
            symbols=symbols.split(","),
            queues=[self.queue],
            clock=clock,
            rng=random.Random(1),
        )
        self.stop = threading.Event()
        self.ended: Future[None] = threads.in_thread(self.feed.run, self.stop)
        self._prices: list[PriceEvent] = []
        self._events: list[tuple[str, str, int, dict[str, Any]]] = []

    @property
    def prices(self) -> list[PriceEvent]:
        """The prices received so far."""
        self._take()
        return self._prices

    def details(self, kind: str) -> list[dict[str, Any]]:
        """The details of all feed events of this kind, each with its `session` and `at`."""
        self._take()
        return [
            {"session": int(session), "at": at, **detail}
            for session, event, at, detail in self._events
            if event == kind
        ]

    @property
    def kinds(self) -> list[str]:
        """The kinds of all feed events, without the periodic ones."""
        self._take()
        return [kind for _, kind, _, _ in self._events if kind != "alive"]

    def wait_for_prices(self, more: int = 3) -> None:
        """Wait for this many further prices."""
        until = len(self.prices) + more
        wait_for(lambda: len(self.prices) >= until)

    def end(self) -> None:
        """Stop the feed and raise its error, if any."""
        self.stop.set()
        self.ended.result(timeout=PATIENCE)

    def _take(self) -> None:
        while items := self.queue.take(timeout=0):
            for item in items:
                if isinstance(item, PriceEvent):
                    self._prices.append(item)
                else:
                    self._events.append((item.session, item.event, int(item.at), json.loads(item.detail)))


@contextmanager
def running(url: str, symbols: str = "BTC/USD,AAPL", **options: Any) -> Iterator[FeedRun]:
    run = FeedRun(url, symbols, **options)
    try:
        yield run
    finally:
        run.stop.set()
        run.ended.exception(timeout=PATIENCE)


@pytest.fixture
def sent() -> list[Event]:
    """The events that the simulator has sent."""
    return []


@pytest.fixture
def simulator(sent: list[Event]) -> Iterator[FaultySimulator]:
    config = SimulatorConfig(rate=200, seed=1)
    with FaultySimulator(config, journal=lambda _, event: sent.append(event)) as server:
        yield server


@pytest.fixture(autouse=True)
def _quick_to_reconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconnect, "FIRST", 0.05)
    monkeypatch.setattr(Reconnect, "LONGEST", 0.1)


def assert_numbered(prices: list[PriceEvent]) -> None:
    """Assert that the prices have the numbers 1, 2, 3 and so on in one session, and rising times of receipt."""
    assert [price.seq for price in prices] == [*range(1, len(prices) + 1)]
    assert len({price.session.id for price in prices}) == 1
    received = [prices[0].session.id, *(price.received for price in prices)]
    assert received == sorted(set(received))


# --- A good connection


def test_every_sent_price_is_numbered_in_order(simulator: FaultySimulator, sent: list[Event]) -> None:
    with running(simulator.url) as run:
        run.wait_for_prices(50)
        simulator.quiet(on=True)
        wait_for(lambda: len(run.prices) == len(sent))
        run.end()
        assert_numbered(run.prices)
        assert [price.event for price in run.prices] == [decode_frame(json.dumps(event).encode()) for event in sent]
        assert run.feed.received == len(sent)


def test_feed_emits_connection_events(simulator: FaultySimulator) -> None:
    with running(simulator.url, "BTC/USD,AAPL", name="crypto") as run:
        run.wait_for_prices(10)
        wait_for(lambda: run.details("alive")[-1:] and run.details("alive")[-1]["last_seq"] > 0)
        run.end()
        assert run.kinds == ["started", "connected", "subscribed", "stopped"]
        (started,), (connected,), (subscribed,), (stopped,) = map(run.details, run.kinds)
        assert started | {"session": 0, "at": 0} == {
            "session": 0,
            "at": 0,
            "feed": "crypto",
            "host": "127.0.0.1",
            "symbols": ["AAPL", "BTC/USD"],
        }
        assert connected["host"] == "127.0.0.1"
        assert sorted(subscribed["symbols"]) == ["AAPL", "BTC/USD"]
        assert stopped["last_seq"] == len(run.prices) == run.feed.received
        assert KEY not in str([run.details(kind) for kind in run.kinds])


def test_symbols_may_name_an_exchange(simulator: FaultySimulator) -> None:
    with running(simulator.url, "aapl:nasdaq") as run:
        run.wait_for_prices(1)
        assert run.details("subscribed")[0]["symbols"] == ["AAPL"]


# --- Faults of the server


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lambda simulator: simulator.close_all(1000), "the server closed the connection (code 1000)"),
        (lambda simulator: simulator.close_all(1012, "restart"), "closed the connection (code 1012: restart)"),
        (FaultySimulator.reset_all, "reset"),
        (FaultySimulator.half_open_all, "nothing from the server for"),
    ],
    ids=["clean close", "close with a reason", "reset", "half-open"],
)
def test_feed_reconnects_with_one_connection_and_records_the_reason(
    simulator: FaultySimulator, fault: Callable[[FaultySimulator], None], cause: str
) -> None:
    with running(simulator.url) as run:
        run.wait_for_prices(3)
        fault(simulator)
        wait_for(lambda: len(run.details("subscribed")) == 2)
        run.wait_for_prices(3)
        run.end()
        assert_numbered(run.prices)
        assert run.kinds == [
            "started",
            *["connected", "subscribed"],
            "disconnected",
            *["connected", "subscribed"],
            "stopped",
        ]
        (lost,) = run.details("disconnected")
        assert cause in lost["cause"]
        assert run.details("connected")[0]["at"] < lost["last_frame"] <= lost["at"]
        assert simulator.most_open == 1
        assert simulator.connections == run.feed.connections == 2


def test_unanswered_heartbeats_reconnect_despite_answered_pings(simulator: FaultySimulator) -> None:
    with running(simulator.url) as run:
        run.wait_for_prices(3)
        simulator.mute(on=True)
        wait_for(lambda: run.details("disconnected"))
        simulator.mute(on=False)
        run.wait_for_prices(3)
        assert_numbered(run.prices)
        assert run.details("disconnected")[0]["cause"] == "the server answers pings but no heartbeat: the feed is dead"
        assert simulator.most_open == 1


def test_hanging_handshake_times_out(simulator: FaultySimulator, caplog: pytest.LogCaptureFixture) -> None:
    with running(simulator.url) as run:
        run.wait_for_prices(3)
        simulator.hang_handshakes(on=True)
        simulator.close_all()
        wait_for(lambda: caplog.text.count("the server did not answer in time; next try in") >= 2)
        simulator.hang_handshakes(on=False)
        run.wait_for_prices(3)
        run.end()
        assert_numbered(run.prices)
        assert (len(run.details("disconnected")), simulator.most_open) == (1, 1)


@pytest.mark.parametrize("upgraded", [False, True], ids=["the handshake", "a frame"])
def test_trickling_peer_times_out(upgraded: bool) -> None:
    """No single read takes long, but no frame is ever complete."""
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not done.is_set():
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                request = peer.recv(65_536).decode()
                if upgraded:
                    key = request.partition("Sec-WebSocket-Key: ")[2].split()[0]
                    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()  # noqa: S324  required by the protocol
                    answer = f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}"
                    peer.sendall(
                        f"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{answer}\r\n\r\n".encode()
                    )
                    peer.sendall(b"\x81\x7f" + (10**6).to_bytes(8, "big"))  # a text frame of a million bytes
                else:
                    peer.sendall(b"HTTP/1.1 101 ")
                while not done.wait(0.05):
                    peer.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threads.in_thread(serve, listener)
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        with running(url, handshake_timeout=0.3, ping_after=0.3) as run:
            if upgraded:
                wait_for(lambda: "nothing from the server" in str(run.details("disconnected")))
            else:
                wait_for(lambda: run.feed._reconnect.failures > 1)
            run.end()
        done.set()
        with socket.create_connection(listener.getsockname()):
            serving.result(5)


def test_connection_lost_while_subscribing_is_closed_before_reconnecting(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, lost = Connection.send, iter([True])

    def send_or_fail(connection: Connection, message: str) -> int:
        if next(lost, False):
            raise ConnectionResetError("reset while subscribing")
        return send(connection, message)

    monkeypatch.setattr(Connection, "send", send_or_fail)
    with running(simulator.url) as run:
        run.wait_for_prices(1)
        assert (simulator.connections, simulator.most_open, run.feed.connections) == (2, 1, 1)


def test_gap_starts_at_the_last_frame_rather_than_at_detection(simulator: FaultySimulator) -> None:
    with running(simulator.url) as run:
        run.wait_for_prices(3)
        simulator.half_open_all()
        wait_for(lambda: run.details("disconnected"))
        (lost,) = run.details("disconnected")
        assert lost["at"] - lost["last_frame"] > 2 * QUICK["ping_after"] * 1_000_000


NESTED = '{"event": "price", "symbol": %s%s}'


def deepest_frame() -> str:
    """The most deeply nested price that Python can parse."""
    frames = (NESTED % ("[" * depth, "]" * depth) for depth in range(2000, 100, -1))
    return next(frame for frame in frames if decode_frame(frame.encode()) is not None)


def test_malformed_frames_are_skipped_and_the_connection_is_kept(simulator: FaultySimulator) -> None:
    deepest = deepest_frame()  # before the feed runs, because the search keeps the interpreter busy
    with running(simulator.url, **PATIENT) as run:
        run.wait_for_prices(1)
        for frame in ("{no json", b"\x00\xff", "x" * 1_000_000, "[1]", b'{"event": "price"}'):
            simulator.send_raw(frame)
        wait_for(lambda: run.feed.skipped_frames == 5)
        for frame in ('{"event": "news", "text": []}', '{"event": ["price"]}', "{}", deepest):
            simulator.send_raw(frame)
        run.wait_for_prices(20)
        run.end()
        assert_numbered(run.prices)
        assert (simulator.connections, run.details("disconnected"), run.feed.skipped_frames) == (1, [], 5)


def test_message_at_the_nesting_limit_is_logged_or_skipped(simulator: FaultySimulator) -> None:
    """Python may fail to print what it could parse. The depth of the stack decides for which of these."""
    with running(simulator.url, **PATIENT) as run:
        run.wait_for_prices(1)
        for depth in range(900, 1000):
            simulator.send_raw(f'{{"event": "x", "status": "error", "deep": {"[" * depth}{"]" * depth}}}')
        run.wait_for_prices(20)
        run.end()
        assert (simulator.connections, run.details("disconnected")) == (1, [])


def test_quiet_market_is_not_an_outage_and_is_resubscribed(simulator: FaultySimulator) -> None:
    simulator.quiet(on=True)
    with running(simulator.url, resubscribe_after=0.5, **PATIENT) as run:
        wait_for(lambda: len(run.details("subscribed")) >= 2)
        assert (simulator.connections, run.details("disconnected")) == (1, [])
        simulator.quiet(on=False)
        run.wait_for_prices(1)


def test_vendor_message_limit_is_respected(simulator: FaultySimulator) -> None:
    simulator.max_client_events(2)
    with running(simulator.url) as run:
        wait_for(lambda: len(run.details("subscribed")) == 3)
        run.wait_for_prices(1)
        assert simulator.most_open == 1


def test_other_client_on_the_same_key_is_reported_once_with_long_backoff(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Reconnect, "FIRST_EVICTED", 0.1)
    monkeypatch.setattr(Reconnect, "LONGEST_EVICTED", 0.2)
    simulator.close_after_subscribe(0.01)
    with running(simulator.url) as run:
        wait_for(lambda: len(run.details("disconnected")) >= Reconnect.EVICTIONS + 2)
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "is another program using this API key?" in errors[0]


@pytest.mark.parametrize("code", [1001, 1002, 1003, 1007, 1009, 1010, 1011, 1012, 1013, 1014, 3008])
def test_server_failing_after_subscribe_is_not_another_client(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(Reconnect, "FIRST_EVICTED", 3600.0)
    monkeypatch.setattr(Reconnect, "LONGEST_EVICTED", 3600.0)
    simulator.close_after_subscribe(0.01, code)
    with running(simulator.url) as run:
        wait_for(lambda: len(run.details("disconnected")) >= Reconnect.EVICTIONS + 2)
    assert "is another program using this API key?" not in caplog.text
    assert {f"(code {code}" in each["cause"] for each in run.details("disconnected")} == {True}


@pytest.mark.parametrize("code", [1000, 1008, 3000, 3003, 4000, 4999])
def test_close_that_may_mean_another_client_is_awaited(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(Reconnect, "FIRST_EVICTED", 0.1)
    monkeypatch.setattr(Reconnect, "LONGEST_EVICTED", 0.2)
    simulator.close_after_subscribe(0.01, code)
    with running(simulator.url):
        wait_for(lambda: "is another program using this API key?" in caplog.text)


@pytest.mark.parametrize(("data", "code"), [(b"", None), (b"\x03\xe8", 1000), (b"\x03\xf4bye", 1012)])
def test_close_frame_code_is_recorded(data: bytes, code: int | None) -> None:
    assert ClosedByServerError(data).code == code
    assert ClosedByServerError(data).may_be_eviction == (code != 1012)


# --- Keys


class Keys:
    """Returns the keys one after the other, then the last one forever, and counts the calls."""

    def __init__(self, *keys: str) -> None:
        self.asked = 0
        self._keys = keys

    def __call__(self) -> Secret:
        self.asked += 1
        return Secret(self._keys[min(self.asked, len(self._keys)) - 1])


@pytest.mark.parametrize("status", [200, 401])
def test_refused_key_stops_the_feed_after_a_few_attempts(
    simulator: FaultySimulator, status: Literal[200, 401], caplog: pytest.LogCaptureFixture
) -> None:
    simulator.refuse_key(on=True, status=status)
    keys = Keys(KEY)
    with running(simulator.url, api_key=keys) as run:
        with pytest.raises(RefusedKeyError, match="check TWELVE_DATA_API_KEY") as caught:
            run.ended.result(timeout=PATIENCE)
        assert caught.value.exit_status == 2
        assert keys.asked == FeedConfig().key_tries
        assert run.kinds == ["started", "stopped"]
    assert KEY not in caplog.text


def test_key_that_once_worked_is_retried_forever(simulator: FaultySimulator) -> None:
    keys = Keys(KEY)
    with running(simulator.url, api_key=keys) as run:
        run.wait_for_prices(1)
        simulator.refuse_key(on=True)
        simulator.close_all()
        wait_for(lambda: keys.asked > 2 * FeedConfig().key_tries)
        assert not run.ended.done()
        simulator.refuse_key(on=False)
        run.wait_for_prices(1)
        assert simulator.most_open == 1


def test_key_is_read_at_every_connect_for_rotation() -> None:
    with (
        FaultySimulator(SimulatorConfig(rate=200, api_key="new & better")) as simulator,
        running(simulator.url, api_key=Keys("old", "new & better")) as run,
    ):
        run.wait_for_prices(1)


# --- Symbols


def test_refused_symbols_are_reported_and_others_continue(
    simulator: FaultySimulator, caplog: pytest.LogCaptureFixture
) -> None:
    with running(simulator.url, "NONSENSE,AAPL,OTHER") as run:
        run.wait_for_prices(3)
        (refused,) = run.details("refused")
        assert refused["symbols"] == {"NONSENSE": "symbol not found", "OTHER": "symbol not found"}
        assert {price.event["symbol"] for price in run.prices} == {"AAPL"}
    assert "refused by the server: NONSENSE (symbol not found); OTHER (symbol not found)" in caplog.text


def test_no_accepted_symbol_stops_the_feed(simulator: FaultySimulator) -> None:
    with running(simulator.url, "NONSENSE") as run:
        with pytest.raises(NothingSubscribedError, match=r"NONSENSE \(symbol not found\)") as caught:
            run.ended.result(timeout=PATIENCE)
        assert caught.value.exit_status == 2
        assert run.kinds[-1] == "stopped"


def test_symbols_change_without_reconnecting(simulator: FaultySimulator) -> None:
    with running(simulator.url, "BTC/USD,AAPL:NASDAQ") as run:
        wait_for(lambda: run.details("subscribed"))
        run.feed.set_symbols(["eur/usd", "AAPL:NASDAQ"])
        wait_for(lambda: len(run.details("subscribed")) == 2)
        assert run.details("subscribed")[1]["symbols"] == ["EUR/USD"]
        assert run.details("unsubscribed")[0]["symbols"] == ["BTC/USD"]
        seen = len(run.prices)
        wait_for(lambda: {price.event["symbol"] for price in run.prices[seen:][-20:]} == {"AAPL", "EUR/USD"})
        simulator.reset_all()
        wait_for(lambda: len(run.details("subscribed")) == 3)  # the new symbols survive a reconnect
        assert sorted(run.details("subscribed")[2]["symbols"]) == ["AAPL", "EUR/USD"]
        assert (simulator.connections, simulator.most_open) == (2, 1)


def test_all_symbols_refused_later_does_not_stop_the_feed(simulator: FaultySimulator) -> None:
    with running(simulator.url, "AAPL") as run:
        run.wait_for_prices(1)
        run.feed.set_symbols(["NONSENSE"])
        wait_for(lambda: run.details("refused"))
        run.feed.set_symbols(["AAPL"])
        wait_for(lambda: len(run.details("subscribed")) == 2)
        assert simulator.connections == 1


def test_subscribe_error_without_symbols_refuses_all(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the feed would stay connected without a subscription, and without an error."""
    monkeypatch.setattr(
        "tickpipe.simulator.protocol.status_event",
        lambda *_: {"event": "subscribe-status", "status": "error", "message": "limit"},
    )
    with running(simulator.url, "AAPL") as run:
        with pytest.raises(NothingSubscribedError, match=r"AAPL \(limit\)"):
            run.ended.result(10)
        assert run.details("refused")[0]["symbols"] == {"AAPL": "limit"}


def test_gap_after_a_stop_starts_at_the_last_frame(simulator: FaultySimulator) -> None:
    """Closing takes a round trip. Prices that arrive in this time are not received."""
    with running(simulator.url, "AAPL") as run:
        run.wait_for_prices(3)
        run.end()
        (stopped,) = run.details("stopped")
        assert stopped["at"] == run.feed._last_frame
        assert stopped["at"] <= run.prices[-1].received


# --- Sessions


class Clock:
    """Microseconds since 1970, with an offset that a test may change."""

    def __init__(self, now: int) -> None:
        self.ahead = now - clock.microseconds()

    def __call__(self) -> int:
        return clock.microseconds() + self.ahead


@pytest.mark.parametrize("quiet", [False, True], ids=["prices flow", "quiet market"])
def test_session_changes_at_midnight_without_reconnecting(
    simulator: FaultySimulator,
    quiet: bool,
) -> None:
    midnight = 20_000 * DAY
    clock = Clock(midnight - 3600 * 1_000_000)
    with running(simulator.url, "AAPL:NASDAQ,BTC/USD", clock=clock) as run:
        run.wait_for_prices(10)
        simulator.quiet(on=quiet)
        clock.ahead += 3600 * 1_000_000
        wait_for(lambda: len(run.details("subscribed")) == 2)
        simulator.quiet(on=False)
        run.wait_for_prices(10)
        run.end()
        first, second = (detail["session"] for detail in run.details("started"))
        assert first < midnight <= second
        assert run.details("started")[1]["continues"] == first
        assert run.kinds == ["started", "connected", "subscribed", "stopped"] * 2
        assert sorted(run.details("subscribed")[1]["symbols"]) == ["AAPL", "BTC/USD"]
        for session, stopped in zip((first, second), run.details("stopped"), strict=True):
            prices = [price for price in run.prices if price.session.id == session]
            assert_numbered(prices)
            assert (stopped["session"], stopped["last_seq"]) == (session, len(prices))
            assert all(price.received // DAY == session // DAY for price in prices)
        assert simulator.connections == 1


@given(st.lists(st.tuples(st.sampled_from(["price", "heartbeat", "tick"]), st.integers(-3, 3), st.integers(-2, 2))))
def test_clock_jumps_lose_no_price_and_repeat_no_number(
    steps: list[tuple[str, int, int]],
) -> None:
    now = 20_000 * DAY  # midnight: a step back leads to the day before
    queue = EventQueue(10**6)
    feed = Feed(
        FeedConfig(alive_every=0.0),
        api_key=lambda: Secret(KEY),
        symbols=["AAPL"],
        queues=[queue],
        clock=lambda: now,
        monotonic=lambda: 0.0,
    )
    feed.channels.begin(now, ["AAPL"])
    read: list[int] = []  # the clock at the receipt of each price
    for kind, seconds, microseconds in steps:
        now += seconds * 700_000 + microseconds
        if kind == "tick":
            feed._keep_sessions(0.0)
        else:
            feed.on_event({"event": kind, "timestamp": str(len(read))})
            read += [now] if kind == "price" else []
    items = queue.take(timeout=0) or []
    prices = [item for item in items if isinstance(item, PriceEvent)]
    feed_events = [item for item in items if not isinstance(item, PriceEvent)]
    assert [price.event["timestamp"] for price in prices] == [str(number) for number in range(len(read))]
    assert all(abs(price.received - at) <= MAX_AHEAD for price, at in zip(prices, read, strict=True))
    sessions = [int(event.session) for event in feed_events if event.event == "started"]
    assert len(set(sessions)) == len(sessions)
    for session in sessions:
        own = [price for price in prices if price.session.id == session]
        assert not own or own[0].seq == 1
        if own:
            assert_numbered(own)
        events = [event for event in feed_events if int(event.session) == session]
        assert [event.number for event in events] == [str(number) for number in range(1, len(events) + 1)]
        if session != sessions[-1]:
            assert events[-1].event == "stopped"
            assert json.loads(events[-1].detail)["last_seq"] == len(own)
    for session, event in zip(sessions, [event for event in feed_events if event.event == "started"][1:], strict=False):
        assert json.loads(event.detail)["continues"] == session


@pytest.mark.parametrize("quiet", [False, True], ids=["prices flow", "quiet market"])
def test_clock_going_back_starts_a_session_without_reconnecting(
    simulator: FaultySimulator, caplog: pytest.LogCaptureFixture, quiet: bool
) -> None:
    hour = 3600 * 1_000_000
    clock = Clock(20_000 * DAY + 12 * hour)
    with running(simulator.url, clock=clock) as run:
        run.wait_for_prices(3)
        clock.ahead += hour
        run.wait_for_prices(3)
        simulator.quiet(on=quiet)
        back = clock() - hour
        clock.ahead -= hour
        wait_for(lambda: len(run.details("subscribed")) == 2)
        simulator.quiet(on=False)
        run.wait_for_prices(3)
        run.end()
        first, second = (detail["session"] for detail in run.details("started"))
        assert run.details("started")[1]["continues"] == first
        assert run.kinds == ["started", "connected", "subscribed", "stopped"] * 2
        for session, stopped in zip((first, second), run.details("stopped"), strict=True):
            prices = [price for price in run.prices if price.session.id == session]
            assert_numbered(prices)
            assert (stopped["session"], stopped["last_seq"]) == (session, len(prices))
        assert run.prices[-1].received <= clock()
        assert back <= second == run.details("stopped")[0]["at"] <= clock()
        assert simulator.connections == 1
    assert re.search(r"the clock has gone back by 3[56]\d\d\.\d s: a new session begins", caplog.text)


def test_connection_lost_after_the_clock_went_back_is_a_gap(simulator: FaultySimulator) -> None:
    """The last frame has a time ahead of the clock. A gap that began then would be hidden."""
    hour = 3600 * 1_000_000
    clock = Clock(20_000 * DAY + 12 * hour)
    with running(simulator.url, clock=clock) as run:
        clock.ahead += hour
        run.wait_for_prices(3)
        simulator.quiet(on=True)
        clock.ahead -= hour
        wait_for(lambda: len(run.details("started")) == 2)
        simulator.half_open_all()
        wait_for(lambda: run.details("disconnected"))
        (lost,) = run.details("disconnected")
        assert run.details("started")[1]["session"] <= lost["last_frame"] <= lost["at"] <= clock()


def test_full_queue_is_recorded_with_the_exact_range(simulator: FaultySimulator) -> None:
    with running(simulator.url, bound=50) as run:
        wait_for(lambda: run.feed.lost >= 20)  # the queue is not emptied
        run.wait_for_prices(50)
        simulator.quiet(on=True)
        run.end()
        seqs = [price.seq for price in run.prices]
        ranges = [(detail["first_seq"], detail["last_seq"]) for detail in run.details("overflow")]
        lost = [seq for first, last in ranges for seq in range(first, last + 1)]
        assert len(lost) == run.feed.lost >= 20
        assert sorted(seqs + lost) == [*range(1, run.feed.received + 1)]
        assert {detail["cause"] for detail in run.details("overflow")} == {"queue full"}


# --- Stopping and waiting


def test_stop_interrupts_the_reconnect_wait(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Reconnect, "FIRST", 3600.0)
    monkeypatch.setattr(Reconnect, "LONGEST", 3600.0)
    with running(simulator.url) as run:
        run.wait_for_prices(1)
        simulator.stop()
        wait_for(lambda: "; next try in " in caplog.text)
        alive = len(run.details("alive"))
        wait_for(lambda: len(run.details("alive")) > alive)
        assert run.details("alive")[-1]["connected"] is False
        run.end()  # long before the next attempt
        assert run.kinds[-2:] == ["disconnected", "stopped"]


def test_unreachable_server_is_retried(simulator: FaultySimulator) -> None:
    simulator.stop()
    keys = Keys(KEY)
    with running(simulator.url, api_key=keys) as run:
        wait_for(lambda: keys.asked >= 6)
        assert not run.ended.done()
        assert run.kinds == ["started"]


def test_reconnecting_does_not_leak_threads(simulator: FaultySimulator) -> None:
    others = set(threading.enumerate())
    with running(simulator.url) as run:
        run.wait_for_prices(1)
        for n in range(2, 5):
            simulator.reset_all()
            wait_for(lambda n=n: len(run.details("subscribed")) == n)  # type: ignore[misc]
        wait_for(lambda: [thread.name for thread in threading.enumerate() if thread not in others] == ["Feed.run"])


# --- How long to wait


def reconnect(
    times: int, *, lasted: float = 0.0, evicted: bool = False, rng: random.Random | None = None
) -> list[float]:
    policy = Reconnect(rng or AtMost())
    return [policy.after(lasted=lasted, evicted=evicted) for _ in range(times)]


class AtMost(random.Random):
    """The longest wait the jitter gives."""

    def uniform(self, a: float, b: float) -> float:
        assert (a, b) == (0.5, 1.0)
        return b


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real waits


@pytest.mark.usefixtures("patience")
class TestReconnect:
    def test_delays_double_up_to_a_maximum(self) -> None:
        assert reconnect(6) == [0.5, 1.0, 2.0, 4.0, 7.0, 7.0]
        assert reconnect(2000)[-1] == Reconnect.LONGEST

    @given(st.randoms(use_true_random=False))
    def test_jitter_shortens_a_delay_by_up_to_half(self, rng: random.Random) -> None:
        for most, wait in zip(reconnect(8), reconnect(8, rng=rng), strict=True):
            assert most / 2 <= wait <= most

    def test_a_recovered_server_is_found_within_15_seconds(self) -> None:
        assert Reconnect.LONGEST + FeedConfig().handshake_timeout < 15

    def test_a_refused_key_ends_the_attempts_within_30_seconds(self) -> None:
        tries = FeedConfig().key_tries
        assert sum(reconnect(tries - 1)) + tries * FeedConfig().handshake_timeout < 30

    def test_a_good_connection_resets_the_delay(self) -> None:
        policy = Reconnect(AtMost())
        waits = [policy.after(lasted=lasted, evicted=False) for lasted in (0, 0, 59.9, 60.0, 0)]
        assert waits == [0.5, 1.0, 2.0, 0.5, 1.0]

    def test_three_early_closes_in_a_row_mean_that_another_client_uses_the_key(self) -> None:
        waits = reconnect(9, lasted=1.0, evicted=True)
        assert waits == [0.5, 1.0, 15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 300.0]

    @pytest.mark.parametrize("between", [{"lasted": 60.0, "evicted": True}, {"lasted": 1.0, "evicted": False}])
    def test_another_kind_of_close_resets_the_count_of_evictions(self, between: dict[str, Any]) -> None:
        policy = Reconnect(AtMost())
        for _ in range(3):
            for _ in range(2):
                assert policy.after(lasted=1.0, evicted=True) <= Reconnect.LONGEST
            policy.after(**between)
            assert policy.evictions == 0


@pytest.mark.parametrize("url", ["", "host", "http://host", "ws://", "ws://[::1", "ws://host:port", "ws://host:99999"])
def test_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a websocket address\. Example: wss://"):
        FeedConfig(url=url)


@pytest.mark.parametrize("url", [TwelveData.urls[0], "ws://127.0.0.1:8765/v1/quotes/price", "ws://[::1]:80"])
def test_address_is_identified_by_its_host(url: str) -> None:
    assert FeedConfig(url=url).host in url


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["text", "ping", "pieces"]), st.sampled_from([0, 1, 2, 60, 125, 126, 127, 300, 70_000])
        ),
        max_size=12,
    ),
    st.lists(st.integers(1, 400), min_size=1),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_do_not_depend_on_fragmentation(frames: list[tuple[str, int]], cuts: list[int]) -> None:
    """A read may return a part of a frame or several frames, and a message may consist of several frames."""
    sent, wire = [], b""
    for number, (kind, size) in enumerate(frames):
        data = (b"%d" % number).ljust(size, b".")[:size]
        if kind == "ping":
            wire += ABNF(1, 0, 0, 0, ABNF.OPCODE_PING, 0, data[:100]).format()
            continue
        sent.append(data)
        if kind == "pieces":
            wire += ABNF(0, 0, 0, 0, ABNF.OPCODE_TEXT, 0, data[: size // 2]).format()
            wire += ABNF(1, 0, 0, 0, ABNF.OPCODE_CONT, 0, data[size // 2 :]).format()
        else:
            wire += ABNF(1, 0, 0, 0, ABNF.OPCODE_TEXT, 0, data).format()
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        connection = Connection()
        connection.sock, connection.connected = ours, True
        connection.settimeout(5)
        sending = in_thread(send_in_cuts, theirs, wire, cuts)
        read: list[bytes] = []
        while len(read) < len(sent):
            if (text := connection.next_text()) is not None:
                read.append(text)
                continue
            opcode, frame = connection.recv_data_frame(control_frame=True)
            if opcode == ABNF.OPCODE_TEXT:
                read.append(frame.data)
        sending.result(timeout=PATIENCE)
    assert read == sent


def send_in_cuts(connection: socket.socket, wire: bytes, cuts: list[int]) -> None:
    at = 0
    for size in itertools.cycle(cuts):
        if at >= len(wire):
            return
        connection.sendall(wire[at : at + size * 40])
        at += size * 40


# --- Proxies


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"])
def test_the_connection_ignores_proxy_variables(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with http_proxy("403 Forbidden") as proxy:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        with running(simulator.url) as run:
            run.wait_for_prices()
    assert proxy.requests == []


def test_prices_arrive_through_an_authenticated_proxy(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # the proxy is given by argument
    with http_proxy() as proxy:
        url = Secret(f"http://us%40er:{KEY}%23@127.0.0.1:{proxy.port}")
        with running(simulator.url, proxy=Proxy("http_proxy", url)) as run:
            run.wait_for_prices()
    assert proxy.requests == [(urlsplit(simulator.url).netloc, f"us@er:{KEY}#")]


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "502 Bad Gateway", "closed"])
def test_connection_failure_names_the_proxy(
    simulator: FaultySimulator, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    with http_proxy(status) as proxy:
        port = 1 if status == "closed" else proxy.port
        url = Secret(f"http://user:{KEY}@localhost:{port}")
        with running(simulator.url, proxy=Proxy("HTTPS_PROXY", url)) as run:
            wait_for(lambda: run.feed.last_error)
            assert not run.ended.done()
    expected = "refused" if status == "closed" else f"status: {status[:3]}"
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines
    assert all(expected in line and f"(through the proxy localhost:{port} (HTTPS_PROXY))" in line for line in lines)
    assert KEY not in caplog.text
