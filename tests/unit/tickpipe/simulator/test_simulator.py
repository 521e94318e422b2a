"""The simulator, tested with the producer's websocket client over a real socket."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websocket

from common.errors import ConfigurationError
from tests.support.faults import FaultySimulator
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.listings import LISTINGS
from tickpipe.simulator.local_server import FLUSH_TIMEOUT
from tickpipe.simulator.random_walk import Event, RandomWalk
from tickpipe.simulator.server import Simulator

FAST = SimulatorConfig(rate=500, seed=1)
COMMON = {"event", "symbol", "type", "timestamp", "price"}
PAIR = COMMON | {"currency_base", "currency_quote", "bid", "ask"}


class Client:
    """Connect and subscribe as the vendor's TDWebSocket does."""

    def __init__(self, url: str, key: str = "demo") -> None:
        self.socket = websocket.create_connection(f"{url}?apikey={key}", timeout=PATIENCE)

    def send(self, request: object) -> None:
        self.socket.send(request if isinstance(request, str) else json.dumps(request))

    def receive(self) -> Event:
        event: Event = json.loads(self.socket.recv())
        return event

    def receive_kind(self, kind: str) -> Event:
        """The next event of a kind. Other prices are skipped."""
        while (event := self.receive())["event"] != kind:
            pass
        return event

    def subscribe(self, symbols: object) -> Event:
        self.send({"action": "subscribe", "params": {"symbols": symbols}})
        return self.receive_kind("subscribe-status")

    def prices(self, n: int) -> list[Event]:
        return [self.receive_kind("price") for _ in range(n)]

    def close_status(self) -> int:
        """Read until the server closes. Returns 1006 without a close frame."""
        try:
            while True:
                opcode, data = self.socket.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return int.from_bytes(data[:2], "big")
        except (websocket.WebSocketConnectionClosedException, ConnectionError):
            return 1006


class Counted:
    """A source whose events have unique prices."""

    def __init__(self) -> None:
        self.count = 0

    def instrument(self, symbol: str) -> Event | None:
        return {"symbol": symbol, "exchange": "", "mic_code": "", "country": "", "type": "Test"}

    def event(self, symbol: str, exchange: str | None, now: float) -> Event:  # noqa: ARG002
        self.count += 1
        return {"event": "price", "symbol": symbol, "type": "Test", "timestamp": int(now), "price": self.count}


@contextmanager
def connected(simulator: Simulator, symbols: str = "", key: str = "demo") -> Iterator[Client]:
    client = Client(simulator.url, key)
    try:
        if symbols:
            client.subscribe(symbols)
        yield client
    finally:
        client.socket.close(timeout=0.2)
        client.socket.shutdown()  # type: ignore[no-untyped-call] # close() omits it if the server closed first


def is_cut_off(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionError:
        return True


@pytest.fixture
def simulator() -> Iterator[FaultySimulator]:
    with FaultySimulator(FAST) as running:
        yield running


# --- The protocol


def test_subscribe_status_matches_twelve_data(simulator: Simulator) -> None:
    with connected(simulator) as client:
        assert client.subscribe("AAPL,BTC/USD,RY:TSX") == {
            "event": "subscribe-status",
            "status": "ok",
            "success": [
                {
                    "symbol": "AAPL",
                    "exchange": "NASDAQ",
                    "mic_code": "XNGS",
                    "country": "United States",
                    "type": "Common Stock",
                },
                {
                    "symbol": "BTC/USD",
                    "exchange": "Coinbase Pro",
                    "mic_code": "Coinbase Pro",
                    "country": "",
                    "type": "Digital Currency",
                },
                {"symbol": "RY", "exchange": "TSX", "mic_code": "XTSE", "country": "Canada", "type": "Common Stock"},
            ],
            "fails": None,
        }
        assert {event["symbol"] for event in client.prices(3)} == {"AAPL", "BTC/USD", "RY"}


def test_subscribe_accepts_the_object_form(simulator: Simulator) -> None:
    with connected(simulator) as client:
        status = client.subscribe([{"symbol": "AAPL", "exchange": "NASDAQ"}, {"symbol": "RY", "mic_code": "XTSE"}])
        assert (status["status"], len(status["success"])) == ("ok", 2)
        client.send({"action": "unsubscribe", "params": {"symbols": [{"symbol": "RY", "exchange": "TSX"}]}})
        status = client.receive_kind("unsubscribe-status")
        assert [each["symbol"] for each in status["success"]] == ["RY"]


def test_unknown_symbols_are_reported(simulator: Simulator) -> None:
    with connected(simulator) as client:
        status = client.subscribe("AAPL,NOSUCH,MSFT:TSX")
        assert status["status"] == "warning"
        assert [each["symbol"] for each in status["success"]] == ["AAPL"]
        assert status["fails"] == [
            {"symbol": "NOSUCH", "message": "symbol not found"},
            {"symbol": "MSFT:TSX", "message": "symbol not found on TSX"},
        ]
        status = client.subscribe("NOSUCH")
        assert (status["status"], status["success"], len(status["fails"])) == ("error", [], 1)


def test_unsubscribe_and_reset_stop_prices(simulator: Simulator) -> None:
    with connected(simulator, "AAPL,BTC/USD") as client:
        client.send({"action": "unsubscribe", "params": {"symbols": "AAPL,EUR/USD"}})
        status = client.receive_kind("unsubscribe-status")
        assert [each["symbol"] for each in status["success"]] == ["AAPL"]
        assert status["fails"] == [{"symbol": "EUR/USD", "message": "not subscribed"}]
        assert {event["symbol"] for event in client.prices(5)} == {"BTC/USD"}
        client.send({"action": "reset"})
        assert client.receive_kind("reset-status") == {"event": "reset-status", "status": "ok"}
        client.send({"action": "heartbeat"})
        assert client.receive() == {"event": "heartbeat", "status": "ok"}  # without a price before it
        assert client.subscribe("AAPL")["status"] == "ok"
        assert client.prices(1)[0]["symbol"] == "AAPL"


@pytest.mark.parametrize(
    "request_",
    [
        "no json",
        "[1]",
        {"action": "dance"},
        {"action": "subscribe"},
        {"action": "subscribe", "params": {"symbols": 7}},
        {"action": "subscribe", "params": {"symbols": [{"exchange": "NYSE"}]}},
    ],
)
def test_invalid_message_gets_an_error_event_and_keeps_the_connection(simulator: Simulator, request_: object) -> None:
    with connected(simulator) as client:
        client.send(request_)
        assert client.receive()["event"] == "error"
        assert client.subscribe("AAPL")["status"] == "ok"


@pytest.mark.parametrize(("configured", "given"), [(None, ""), ("secret", "wrong")])
def test_a_bad_key_is_refused_with_status_200(configured: str | None, given: str) -> None:
    with Simulator(SimulatorConfig(api_key=configured)) as simulator:
        with pytest.raises(websocket.WebSocketBadStatusException, match="Handshake status 200 OK") as caught:
            Client(simulator.url, given)
        body = json.loads(caught.value.resp_body or b"")
        assert (body["code"], body["status"]) == (401, "error")
        assert "**apikey** parameter is incorrect or not specified" in body["message"]


def test_the_right_key_is_accepted_and_hidden() -> None:
    config = SimulatorConfig(api_key="secret")
    assert "secret" not in repr(config)
    with Simulator(config) as simulator, connected(simulator, "AAPL", key="secret"):
        pass


def test_other_paths_are_not_found(simulator: Simulator) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException, match="404"):
        Client(simulator.url + "s")


# --- Prices


def test_three_message_shapes_are_supported(simulator: Simulator) -> None:
    with connected(simulator, "AAPL,SPY,BTC/USD,EUR/USD,XAU/USD") as client:
        events = {event["symbol"]: event for event in client.prices(5)}
    share = COMMON | {"currency", "exchange", "day_volume", "mic_code"}
    assert set(events["AAPL"]) == set(events["SPY"]) == share
    assert set(events["BTC/USD"]) == PAIR | {"exchange", "day_volume"}
    assert set(events["EUR/USD"]) == set(events["XAU/USD"]) == PAIR
    assert [events[symbol]["type"] for symbol in ("AAPL", "SPY", "BTC/USD", "EUR/USD")] == [
        "Common Stock",
        "ETF",
        "Digital Currency",
        "Physical Currency",
    ]
    for event in events.values():
        assert abs(event["timestamp"] - time.time()) < 10
        assert isinstance(event["timestamp"], int)
        assert event.get("bid", 0) < event["price"] < event.get("ask", float("inf"))


@pytest.mark.parametrize("symbol", sorted(LISTINGS))
def test_prices_move_plausibly(symbol: str) -> None:
    walk = RandomWalk(random.Random(7))
    month = [walk.event(symbol, None, 1_700_000_000 + 600 * step)["price"] for step in range(4_000)]
    minute = [walk.event(symbol, None, 1_702_400_000 + step)["price"] for step in range(60)]
    assert len(set(minute)) > 1
    assert 0.8 * LISTINGS[symbol].price < min(month) < max(month) < 1.25 * LISTINGS[symbol].price


def test_same_seed_gives_the_same_prices() -> None:
    walks = [RandomWalk(random.Random(3)) for _ in range(2)]
    first, second = ([walk.event("BTC/USD", None, 1e9 + n) for n in range(50)] for walk in walks)
    assert first == second


def test_day_volume_grows_and_resets_at_midnight_utc() -> None:
    walk = RandomWalk(random.Random(1))
    midnight = 20_000 * 86_400
    before = [walk.event("BTC/USD", None, midnight + second)["day_volume"] for second in range(-3_600, 0, 60)]
    after = walk.event("BTC/USD", None, midnight + 1.0)["day_volume"]
    assert before == sorted(before)
    assert after < before[0] / 100


def test_all_connections_see_the_same_market(simulator: Simulator) -> None:
    with connected(simulator, "BTC/USD") as one, connected(simulator, "BTC/USD") as other:
        prices = [client.prices(1)[0]["price"] for client in (one, other)]
    assert prices[0] == pytest.approx(prices[1], rel=0.001)


def test_rate_is_kept() -> None:
    with Simulator(SimulatorConfig(rate=1_000), Counted()) as simulator, connected(simulator, "A,B,C") as client:
        client.prices(1)
        began = time.monotonic()
        events = client.prices(1_000)
        seconds = time.monotonic() - began
    assert seconds > 0.8  # 1 on an idle machine; a busy one may need more
    assert [event["price"] for event in events] == list(range(2, 1_002))
    assert [event["symbol"] for event in events[:6]] == ["B", "C", "A"] * 2  # spread evenly


def test_slow_client_gets_backpressure_instead_of_a_queue() -> None:
    source = Counted()
    with Simulator(SimulatorConfig(rate=200_000), source) as simulator:
        with connected(simulator, "x" * 20_000) as client:  # large events fill the socket buffers quickly
            stalled_at = -1
            while source.count != stalled_at:
                stalled_at = source.count
                time.sleep(0.2)
            assert 0 < stalled_at < 2_000  # created one by one as space permits: at most 8 MB, mostly in the kernel
            assert [event["price"] for event in client.prices(stalled_at)] == list(range(1, stalled_at + 1))
            wait_for(lambda: source.count > stalled_at)
        assert simulator.stop().events_sent == source.count


def test_journal_records_what_each_connection_was_sent() -> None:
    journal: list[tuple[int, Event]] = []
    with Simulator(FAST, Counted(), journal=lambda number, event: journal.append((number, event))) as simulator:
        with connected(simulator, "A") as one, connected(simulator, "B") as other:
            received = {1: one.prices(20), 2: other.prices(20)}
        summary = simulator.stop()
    for number, events in received.items():
        assert [event for to, event in journal if to == number][:20] == events
    assert (summary.connections, summary.events_sent) == (2, len(journal))


def test_failing_source_closes_the_connection() -> None:
    class Broken(Counted):
        def event(self, symbol: str, exchange: str | None, now: float) -> Event:
            raise LookupError(symbol, exchange, now)

    with Simulator(FAST, Broken()) as simulator, connected(simulator, "A") as client:
        assert client.close_status() == 1011


# --- A capture


def recorded(path: Path, events: int = 2_000, step: float = 0.25) -> list[Event]:
    rng = random.Random(5)
    prices = [
        {"event": "price", "symbol": rng.choice(["EUR/USD", "Ümlaut"]), "timestamp": n, "price": n + 0.1, "extra": [n]}
        for n in range(events)
    ]
    path.write_text("".join(json.dumps({"at": n * step, "event": event}) + "\n" for n, event in enumerate(prices)))
    return prices


def received_until_closed(client: Client) -> list[Event]:
    events = []
    while message := client.socket.recv():  # empty after a clean close
        events.append(json.loads(message))
    return events


def test_capture_is_replayed_exactly_then_closed(tmp_path: Path) -> None:
    events = recorded(tmp_path / "capture")
    journal: list[tuple[int, Event]] = []
    config = SimulatorConfig(capture=tmp_path / "capture", speed=0)
    with Simulator(config, journal=lambda *handed: journal.append(handed)) as simulator:
        assert not simulator.wait(0.05)  # before the first subscription
        with connected(simulator) as client:
            assert client.subscribe("AAPL")["status"] == "error"
            assert client.subscribe("eur/usd,Ümlaut")["status"] == "ok"
            assert received_until_closed(client) == events
        assert simulator.wait(PATIENCE)
        assert journal == [(1, event) for event in events]
        with connected(simulator) as late:  # replayed once
            assert late.subscribe("EUR/USD")["status"] == "ok"
            late.send({"action": "heartbeat"})
            assert late.receive()["event"] == "heartbeat"


def test_connections_share_one_replay_by_symbol(tmp_path: Path) -> None:
    events = recorded(tmp_path / "capture", 300, step=0.001)
    with (
        FaultySimulator(SimulatorConfig(capture=tmp_path / "capture", speed=1)) as simulator,
        connected(simulator) as one,
        connected(simulator) as other,
    ):
        simulator.quiet(on=True)  # the replay waits for both clients
        one.subscribe("EUR/USD")
        other.subscribe("EUR/USD,Ümlaut")
        simulator.quiet(on=False)
        assert received_until_closed(one) == [event for event in events if event["symbol"] == "EUR/USD"]
        assert received_until_closed(other) == events
        assert simulator.wait(PATIENCE)


def test_replay_keeps_pace_and_pauses_without_subscribers(tmp_path: Path) -> None:
    events = recorded(tmp_path / "capture", 5, step=1.0)
    with Simulator(SimulatorConfig(capture=tmp_path / "capture", speed=10)) as simulator:
        began = time.monotonic()
        with connected(simulator, "EUR/USD,Ümlaut") as client:
            seen = client.prices(2)
            client.send({"action": "reset"})
            client.receive_kind("reset-status")
            assert not simulator.wait(0.5)
            client.subscribe("EUR/USD,Ümlaut")
            seen += received_until_closed(client)
        assert seen == events
        assert time.monotonic() - began >= 0.8  # 0.4 s of market time and the pause of 0.5 s


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty: expected a line"),
        ('{"at": 1}\n', "line 1: expected a line"),
        ('{"at": 1, "event": {"event": "price", "symbol": "A", "timestamp": 1, "price": 1}}\nrubbish', "line 2 is not"),
        ('{"at": "1", "event": {}}', 'line 1: expected a line {"at": seconds'),
        ('{"at": 1, "event": {"event": "heartbeat"}}', "line 1: expected a price event"),
        ('{"at": 1, "event": {"event": "price", "symbol": "A", "timestamp": 1, "price": NaN}}', "NaN is not a JSON"),
        ('{"at": 1, "event": {"event": "price", "symbol": "A", "timestamp": 1, "price": "1"}}', "expected numbers"),
    ],
)
def test_malformed_capture_is_refused_at_startup(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "capture.ndjson"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        Simulator(SimulatorConfig(capture=path)).start()
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_capture_with_decreasing_times_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path / "capture", 3, step=-1)
    with pytest.raises(ConfigurationError, match=r"line 2: expected .* not before the line above"):
        Simulator(SimulatorConfig(capture=tmp_path / "capture")).start()


def test_a_missing_capture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the capture .*missing"):
        Simulator(SimulatorConfig(capture=tmp_path / "missing")).start()


# --- Start and stop


def test_port_in_use_is_a_configuration_error(simulator: Simulator) -> None:
    port = int(simulator.url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is taken.*--port"):
        Simulator(SimulatorConfig(port=port)).start()


@pytest.mark.parametrize("setting", [{"rate": 0}, {"rate": float("nan")}, {"speed": -1}, {"port": 65_536}])
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"--{next(iter(setting))}"):
        SimulatorConfig(**setting)


def test_stop_returns_a_summary_and_is_idempotent(simulator: Simulator) -> None:
    with connected(simulator, "AAPL") as client:
        client.prices(3)
        client.socket.close(timeout=1)
        summary = simulator.stop()
    assert summary == simulator.stop()
    assert summary.events_sent >= 3
    assert str(summary).startswith(f"{summary.events_sent:,} price events sent to 1 connection in ")


def test_stop_does_not_wait_for_unresponsive_peers(simulator: FaultySimulator) -> None:
    address = simulator.url.split("/")[2].split(":")
    with (
        connected(simulator, "AAPL"),  # does not read, so it answers no close frame
        connected(simulator, "AAPL"),
        socket.create_connection((address[0], int(address[1]))) as never_asks,
    ):
        simulator.half_open_all()
        with connected(simulator, "AAPL"):
            began = time.monotonic()
            simulator.stop()
            assert time.monotonic() - began < FLUSH_TIMEOUT / 2  # stop did not wait for their close frames
            never_asks.settimeout(PATIENCE)
            assert is_cut_off(never_asks)


# --- Faults


def test_close_all_closes_every_connection(simulator: FaultySimulator) -> None:
    with connected(simulator, "AAPL") as client:
        client.prices(1)
        simulator.close_all(1012, "restart")
        assert client.close_status() == 1012
        assert (simulator.open_connections, simulator.connections, simulator.most_open) == (0, 1, 1)


def test_reset_all_resets_every_connection(simulator: FaultySimulator) -> None:
    with connected(simulator) as client:
        simulator.reset_all()
        with pytest.raises(ConnectionResetError):
            client.receive()
        wait_for(lambda: simulator.open_connections == 0)


def test_half_open_sends_nothing(simulator: FaultySimulator) -> None:
    with connected(simulator, "AAPL") as client:
        simulator.half_open_all()
        client.socket.ping()
        client.socket.settimeout(0.2)
        with pytest.raises(websocket.WebSocketTimeoutException):
            client.receive_kind("nothing more, not even the pong")
        with connected(simulator, "AAPL") as other:  # new connections work
            assert other.prices(1)
            assert (simulator.open_connections, simulator.most_open) == (1, 1)


def test_hanging_handshakes_are_never_answered(simulator: FaultySimulator) -> None:
    simulator.hang_handshakes(on=True)
    with pytest.raises(websocket.WebSocketTimeoutException):
        websocket.create_connection(f"{simulator.url}?apikey=demo", timeout=0.2)
    simulator.hang_handshakes(on=False)
    with connected(simulator, "AAPL"):
        assert simulator.connections == 1


def test_mute_answers_only_pings(simulator: FaultySimulator) -> None:
    with connected(simulator, "AAPL") as client:
        simulator.mute(on=True)
        client.send({"action": "heartbeat"})
        client.socket.ping("still there?")
        opcode = websocket.ABNF.OPCODE_TEXT
        while opcode == websocket.ABNF.OPCODE_TEXT:
            opcode, data = client.socket.recv_data(control_frame=True)
            assert b"heartbeat" not in data
        assert (opcode, data) == (websocket.ABNF.OPCODE_PONG, b"still there?")
        client.socket.settimeout(0.1)
        with pytest.raises(websocket.WebSocketTimeoutException):
            client.receive()
        client.socket.settimeout(PATIENCE)
        simulator.mute(on=False)
        assert client.prices(1)


def test_quiet_answers_heartbeats_without_sending_prices(simulator: FaultySimulator) -> None:
    with connected(simulator) as client:
        simulator.quiet(on=True)
        client.subscribe("AAPL")
        for _ in range(5):
            client.send({"action": "heartbeat"})
            assert client.receive() == {"event": "heartbeat", "status": "ok"}
        simulator.quiet(on=False)
        assert client.prices(1)


@pytest.mark.parametrize("data", ["{no json", b"\x00\xff", "x" * 1_000_000], ids=["garbage", "binary", "1 MB"])
def test_raw_frames_are_sent_unchanged(simulator: FaultySimulator, data: str | bytes) -> None:
    with connected(simulator) as client:
        simulator.send_raw(data)
        opcode, received = client.socket.recv_data()
        assert received == (data.encode() if isinstance(data, str) else data)
        assert (opcode == websocket.ABNF.OPCODE_BINARY) == isinstance(data, bytes)


def test_refused_keys_fail_the_handshake(simulator: FaultySimulator) -> None:
    for status in (200, 401):
        simulator.refuse_key(on=True, status=status)
        with pytest.raises(websocket.WebSocketBadStatusException, match=f"Handshake status {status}"):
            Client(simulator.url)
    simulator.refuse_key(on=False)
    with connected(simulator):
        assert simulator.connections == 1


def test_connection_is_closed_after_subscribe(simulator: FaultySimulator) -> None:
    simulator.close_after_subscribe(0.05)
    with connected(simulator, "AAPL") as client:
        assert client.close_status() == 1000
    simulator.close_after_subscribe(None)
    with connected(simulator, "AAPL") as client:
        assert client.prices(50)


def test_max_client_events_limits_messages(simulator: FaultySimulator) -> None:
    simulator.max_client_events(3)
    with connected(simulator, "AAPL") as client:
        client.send({"action": "heartbeat"})
        client.receive_kind("heartbeat")
        client.send({"action": "heartbeat"})
        assert client.close_status() == 1008


def test_max_connections_closes_the_oldest(simulator: FaultySimulator) -> None:
    simulator.max_connections(1)
    with connected(simulator, "AAPL") as oldest, connected(simulator, "AAPL") as newest:
        assert oldest.close_status() == 1000
        assert newest.prices(10)
        assert (simulator.most_open, simulator.connections) == (2, 2)


def test_faults_may_be_called_from_the_journal() -> None:
    handed: list[Event] = []

    def journal(_: int, event: Event) -> None:
        handed.append(event)
        if len(handed) == 10:
            faulty.close_all()

    with FaultySimulator(FAST, Counted(), journal) as faulty, connected(faulty, "A") as client:
        assert client.close_status() == 1000


# --- Access


def answer_to(simulator: Simulator, target: str, *headers: str) -> int:
    """The response status of a request with these headers."""
    place = urlsplit(simulator.rest_url)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE) as client:
        client.sendall("\r\n".join([f"GET {target} HTTP/1.1", *headers, "", ""]).encode())
        return int(client.recv(65_536).split(b" ", 2)[1])


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def test_cross_site_pages_get_neither_prices_nor_bars() -> None:
    with Simulator(FAST) as simulator:
        host = urlsplit(simulator.rest_url).netloc
        prices, bars = "/v1/quotes/price?apikey=k", "/time_series?apikey=k"
        assert answer_to(simulator, prices, f"Host: {host}", *UPGRADE, f"Origin: http://{host}") == 101
        assert answer_to(simulator, bars, f"Host: {host}", "Connection: Upgrade") == 404  # without a symbol
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert answer_to(simulator, prices, f"Host: {host}", *UPGRADE, f"Origin: {origin}") == 403
            assert answer_to(simulator, bars, f"Host: {host}", f"Origin: {origin}") == 403
        for name in ("evil.example", "127.0.0.1.evil.example"):
            assert answer_to(simulator, prices, f"Host: {name}", *UPGRADE, f"Origin: http://{name}") == 400
            assert answer_to(simulator, bars, f"Host: {name}") == 400


def test_idle_connections_are_limited_and_do_not_block_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickpipe.simulator.handshakes.MAX_HANDSHAKES", 10)
    with Simulator(FAST) as simulator, ExitStack() as stack:
        place = urlsplit(simulator.rest_url)
        idle = [
            stack.enter_context(socket.create_connection((place.hostname, place.port), timeout=PATIENCE))
            for _ in range(20)
        ]
        with connected(simulator, "AAPL") as client:
            assert client.prices(1)
        with suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""  # the oldest was closed
