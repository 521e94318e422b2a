"""The client of Twelve Data's REST interface: requests, answers and rate. The simulator is the server."""

from __future__ import annotations

import gzip
import logging
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from common.errors import ConfigurationError, OutageError, TickpipeError
from common.settings import Secret
from tests.support.faults import FaultySimulator
from tests.support.http_proxy import http_proxy
from tickpipe.backfill.rate_limit import ATTEMPTS, MAX_WAIT, RateLimiter
from tickpipe.backfill.rest import (
    Bar,
    OutOfCreditsError,
    RefusedKeyError,
    RefusedSymbolError,
    StoppedError,
    TwelveDataRest,
)
from tickpipe.simulator.config import SimulatorConfig

KEY = "s3cr3t/+key"
SINCE = datetime(2026, 11, 20, 23, 58, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NOW = SINCE + timedelta(days=1)
PRICES = {"open": "0.00002417", "high": "0.00002418", "low": "0.00002416", "close": "0.00002417"}


@pytest.fixture
def simulator() -> Iterator[FaultySimulator]:
    config = SimulatorConfig(api_key=KEY, credits_per_minute=50)
    with FaultySimulator(config, clock=NOW.timestamp) as running:
        yield running


@pytest.fixture
def vendor(simulator: FaultySimulator) -> Iterator[TwelveDataRest]:
    with closing(TwelveDataRest(f"{simulator.rest_url}/v1/", Secret(KEY))) as vendor:
        yield vendor


def request_bars(
    vendor: TwelveDataRest, symbol: str = "BTC/USD", exchange: str | None = None, minutes: int = 5
) -> list[Bar]:
    return vendor.bars(symbol, exchange, SINCE, SINCE + minutes * MINUTE)


# --- Requests


def test_bars_cover_exactly_the_minutes_of_the_span(vendor: TwelveDataRest) -> None:
    bars = request_bars(vendor)
    assert [bar.at for bar in bars] == [SINCE + n * MINUTE for n in range(5)]
    assert all(bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high for bar in bars)
    assert {bar.volume for bar in bars} == {None}  # pairs have no volume
    assert request_bars(vendor, minutes=2) == bars[:2]
    assert len(request_bars(vendor, minutes=1_400)) == 1_400


def test_volumes_and_all_decimals_are_kept(vendor: TwelveDataRest, simulator: FaultySimulator) -> None:
    assert all(bar.volume and bar.volume > 0 for bar in request_bars(vendor, "AAPL", "NASDAQ"))
    values = [{"datetime": f"{SINCE:%Y-%m-%d %H:%M:%S}", **PRICES, "volume": "1.5"}]
    simulator.answer_calls((200, {"meta": {}, "values": values, "status": "ok"}))
    assert request_bars(vendor) == [Bar(SINCE, 0.00002417, 0.00002418, 0.00002416, 0.00002417, 1.5)]


def test_request_matches_the_vendors_client(vendor: TwelveDataRest, simulator: FaultySimulator) -> None:
    request_bars(vendor)
    request_bars(vendor, "RY", "TSX")
    assert simulator.calls[0] == {
        "symbol": "BTC/USD", "interval": "1min", "start_date": "2026-11-20 23:58:00", "end_date": "2026-11-21 00:02:59",
        "timezone": "UTC", "order": "ASC", "outputsize": "5000", "prepost": "false", "format": "JSON",
    }  # fmt: skip
    assert simulator.calls[1] == {**simulator.calls[0], "symbol": "RY", "exchange": "TSX"}


# --- Errors


@pytest.mark.parametrize("status", [200, 400, 404])
def test_closed_market_returns_no_bars_without_an_error(
    vendor: TwelveDataRest, simulator: FaultySimulator, status: int
) -> None:
    words = "No data is available on the specified dates. Try setting different start/end dates."
    simulator.answer_calls((status, {"code": 400, "message": words, "status": "error"}))
    assert request_bars(vendor) == []
    assert vendor.bars("BTC/USD", None, NOW + MINUTE, NOW + 3 * MINUTE) == []  # the future


@pytest.mark.parametrize("status", [200, None], ids=["in the body only", "also as HTTP status"])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, RefusedSymbolError), (401, RefusedKeyError), (403, RefusedKeyError), (404, RefusedSymbolError),
        (429, OutOfCreditsError), (500, OutageError), (503, OutageError), ("odd", OutageError), (None, OutageError),
    ],
)  # fmt: skip
def test_error_class_follows_the_vendor_code(
    vendor: TwelveDataRest,
    simulator: FaultySimulator,
    code: int | str | None,
    error: type[TickpipeError],
    status: int | None,
) -> None:
    http = status or (code if isinstance(code, int) else 500)
    simulator.answer_calls((http, {"code": code, "message": "why", "status": "error"}))
    with pytest.raises(error, match="why") as raised:
        request_bars(vendor)
    assert raised.type is error


def test_simulator_refuses_invalid_requests(vendor: TwelveDataRest, simulator: FaultySimulator) -> None:
    for symbol, exchange in (("NOSUCH", None), ("MSFT", "TSX")):
        with pytest.raises(RefusedSymbolError, match="not found"):
            request_bars(vendor, symbol, exchange)
    with (
        closing(TwelveDataRest(simulator.rest_url, Secret("other"))) as other,
        pytest.raises(RefusedKeyError, match="API_KEY"),
    ):
        request_bars(other)
    for _ in range(47):
        request_bars(vendor)
    with pytest.raises(OutOfCreditsError, match="limit being 50"):
        request_bars(vendor)


@pytest.mark.parametrize(
    "body",
    [
        None, 7, "nonsense", ["nonsense"], {}, {"status": "ok"}, {"status": "ok", "values": None},
        {"status": "ok", "values": ["x"]}, {"status": "ok", "values": [{"datetime": "2026-11-20 23:58:00"}]},
        {"status": "ok", "values": [dict.fromkeys(("datetime", "open", "high", "low", "close"), "soon")]},
        {"status": "ok", "values": [{"datetime": "2026-11-20", **PRICES, "volume": "NaN"}]},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_response_is_an_outage(vendor: TwelveDataRest, simulator: FaultySimulator, body: object) -> None:
    simulator.answer_calls((200, body))
    with pytest.raises(OutageError, match=r"sent invalid bars|sent no valid answer|says 200"):
        request_bars(vendor)


# --- Secrets


@pytest.mark.parametrize("fault", ["unavailable", "refused", "echoed", "nonsense", "path"])
def test_key_never_appears_in_urls_errors_or_logs(
    simulator: FaultySimulator, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(logging.DEBUG)
    url = "http://127.0.0.1:1" if fault == "unavailable" else simulator.rest_url + ("/none?" if fault == "path" else "")
    if fault == "refused":
        simulator.answer_calls((401, {"code": 401, "message": f"apikey {KEY} is wrong", "status": "error"}))
    elif fault == "echoed":
        simulator.answer_calls((500, {"code": 500, "message": f"no {KEY} today", "status": "error"}))
    elif fault == "nonsense":
        simulator.answer_calls((200, {"values": [{**PRICES, "datetime": KEY}], "status": "ok"}))
    with closing(TwelveDataRest(url, Secret(KEY))) as vendor, pytest.raises(TickpipeError) as raised:
        request_bars(vendor)
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + repr(vendor) + caplog.text
    assert KEY not in shown
    assert "s3cr3t" not in shown  # nor percent-encoded
    assert "s3cr3t" not in str(simulator.calls)


@pytest.mark.parametrize("url", ["", "api.twelvedata.com", "ftp://host", "http://", "http://[::1", "http://host:port"])
def test_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--rest-url .*is not a web address"):
        TwelveDataRest(url, Secret(KEY))


def test_address_with_a_password_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigurationError, match=r"--rest-url .*is not a web address") as raised:
        TwelveDataRest(f"http://me:{KEY}@host", Secret(KEY))
    assert KEY not in str(raised.value)


# --- Rate


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = 1_000_000_030.0  # 10 s after the start of a minute
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Vendor:
    """Raises the given errors in turn and then answers. Each call takes `takes` seconds."""

    def __init__(self, clock: Clock, *answers: Exception, takes: float = 0.0) -> None:
        self.clock, self.takes, self.answers = clock, takes, list(answers)
        self.called: list[float] = []

    def __call__(self) -> str:
        self.called.append(self.clock.now)
        self.clock.now += self.takes
        if self.answers:
            raise self.answers.pop(0)
        return "bars"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rate_limiter(clock: Clock, per_minute: int, stop: threading.Event | None = None) -> RateLimiter:
    return RateLimiter(per_minute, stop or threading.Event(), clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("takes", [0.0, 3.0])
def test_calls_per_minute_do_not_exceed_credits(clock: Clock, takes: float) -> None:
    vendor, limiter = Vendor(clock, takes=takes), rate_limiter(clock, 8)
    assert [limiter.call(vendor) for _ in range(24)] == ["bars"] * 24
    assert all(later - early >= 60 for early, later in zip(vendor.called, vendor.called[8:], strict=False))
    assert vendor.called[23] - vendor.called[0] <= 2 * 60 + 8 * takes + 2 * takes  # no needless wait


def test_client_waits_for_the_next_minute_without_credits(clock: Clock) -> None:
    vendor = Vendor(clock, OutOfCreditsError(), OutOfCreditsError())
    assert rate_limiter(clock, 100).call(vendor) == "bars"
    assert [at % 60 for at in vendor.called] == [10, 1, 1]
    assert vendor.called[2] - vendor.called[1] == 60


def test_outage_is_retried_with_backoff_then_raised(clock: Clock) -> None:
    vendor = Vendor(clock, *[OutageError(f"outage {n}") for n in range(9)])
    with pytest.raises(OutageError, match=f"outage {ATTEMPTS - 1}"):
        rate_limiter(clock, 100).call(vendor)
    assert len(vendor.called) == ATTEMPTS
    assert all(0 <= wait <= MAX_WAIT for wait in clock.slept)


def test_retries_cost_credits(clock: Clock) -> None:
    vendor, limiter = Vendor(clock, OutageError(), OutageError()), rate_limiter(clock, 3)
    assert [limiter.call(vendor) for _ in range(2)] == ["bars"] * 2
    assert vendor.called[3] - vendor.called[0] >= 60


@pytest.mark.parametrize("error", [RefusedKeyError(), RefusedSymbolError()])
def test_permanent_errors_are_not_retried(clock: Clock, error: TickpipeError) -> None:
    vendor = Vendor(clock, error)
    with pytest.raises(type(error)):
        rate_limiter(clock, 100).call(vendor)
    assert len(vendor.called) == 1


def test_stop_ends_further_requests(clock: Clock) -> None:
    stop = threading.Event()
    vendor, limiter = Vendor(clock), rate_limiter(clock, 1, stop)
    limiter.call(vendor)
    stop.set()
    with pytest.raises(StoppedError, match="run it again"):
        limiter.call(vendor)
    assert len(vendor.called) == 1


def test_stop_interrupts_the_rate_limit_wait() -> None:
    stop = threading.Event()
    limiter = RateLimiter(1, stop, clock=Clock())
    limiter.call(lambda: None)
    waiting = threading.Timer(0.05, stop.set)
    waiting.start()
    with pytest.raises(StoppedError):
        limiter.call(lambda: None)
    waiting.join()


# --- Proxies


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_loopback_server_is_called_without_a_proxy(
    simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("no_proxy", "elsewhere")
    with http_proxy("403 Forbidden") as proxy:
        environ = {name: f"http://127.0.0.1:{proxy.port}"}
        monkeypatch.setenv(name, environ[name])
        with closing(TwelveDataRest(simulator.rest_url, Secret(KEY), environ)) as vendor:
            assert len(request_bars(vendor)) == 5
    assert proxy.requests == []


def test_an_error_through_a_proxy_names_the_proxy() -> None:
    with http_proxy("407 Proxy Authentication Required") as proxy:
        environ = {"https_proxy": f"http://user:pa55@127.0.0.1:{proxy.port}"}
        with (
            closing(TwelveDataRest("https://api.invalid", Secret(KEY), environ)) as vendor,
            pytest.raises(OutageError) as failed,
        ):
            request_bars(vendor)
    assert f"api.invalid through the proxy 127.0.0.1:{proxy.port} (https_proxy) sent no valid answer" in str(
        failed.value
    )
    assert "pa55" not in str(failed.value)
    assert proxy.requests == [("api.invalid:443", "user:pa55")]


def test_an_invalid_proxy_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"^all_proxy: "):
        TwelveDataRest("https://api.invalid", Secret(KEY), {"all_proxy": "socks5://127.0.0.1:1080"})


# --- A hostile server


class Hostile(BaseHTTPRequestHandler):
    """Redirects with the status in the path, or answers with an endless body."""

    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.heard.append(self.path)
        _, kind, *_ = self.path.split("/")
        with suppress(OSError):
            if kind.isdecimal():
                self.send_response(int(kind))
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip" if kind == "bomb" else "identity")
            self.end_headers()
            if kind == "nested":
                self.wfile.write(b"[" * 200_000)
                return
            part = gzip.compress(b" " * 2**26) if kind == "bomb" else b" " * 2**20
            for _ in range(64):
                self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def hostile() -> Iterator[str]:
    """The URL of a hostile server."""
    Hostile.heard.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(hostile: str, status: int) -> None:
    with (
        closing(TwelveDataRest(f"{hostile}/{status}", Secret(KEY))) as vendor,
        pytest.raises(OutageError, match=f"HTTP status {status}, a redirect"),
    ):
        request_bars(vendor)
    assert len(Hostile.heard) == 1


@pytest.mark.parametrize("kind", ["endless", "bomb"])
def test_endless_response_is_aborted(hostile: str, kind: str) -> None:
    with (
        closing(TwelveDataRest(f"{hostile}/{kind}", Secret(KEY))) as vendor,
        pytest.raises(OutageError, match="larger than"),
    ):
        request_bars(vendor)


def test_deeply_nested_response_is_an_outage(hostile: str) -> None:
    with (
        closing(TwelveDataRest(f"{hostile}/nested", Secret(KEY))) as vendor,
        pytest.raises(OutageError, match="Recursion"),
    ):
        request_bars(vendor)
