"""The dashboard in a real browser, on a real pipeline.

`DASHBOARD_SHOT=docs/dashboard.png` writes the screenshot of the README. `DASHBOARD_SHOTS` names a folder for all
screenshots.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page

from common.database.client import DatabaseClient
from common.errors import DatabaseOutageError
from common.settings import Secret
from tests.support.browser import find_program, launched
from tests.support.history import store_history
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.inspect.database import DatabaseReader
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.random_walk import RandomWalk
from tickpipe.simulator.server import Simulator

SYMBOLS = ["AAPL", "BTC/USD", "ETH/USD", "EUR/USD", "MSFT", "NVDA", "SOL/USD", "SPY", "USD/JPY", "XAU/USD"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_program()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium or Chrome here: install one")
        pytest.skip("no Chromium or Chrome here")
    with launched(program) as browser:
        yield browser


class Board:
    """A running dashboard and its page in a browser."""

    def __init__(self, process: Running, page: Page) -> None:
        self.process = process
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: self._within(request.url))

    @property
    def url(self) -> str:
        """The URL that the dashboard prints."""
        found = re.search(r"dashboard: (http://\S+)", self.process.said())
        return found[1] if found else ""

    def open(self, query: str = "") -> None:
        """Load the page and wait for the chart."""
        wait_for(lambda: self.url, message="the dashboard tells its address")
        self.page.goto(self.url + query)
        wait_for(self.candles, message="the chart has candles")

    def chart(self) -> Any:
        """The options of the visible chart."""
        return self.page.evaluate(
            """() => {
                const element = document.querySelector(".chart");
                const chart = element && getElement(Number(element.id.slice(1)))?.chart;
                return chart?.getOption() ?? {};
            }"""
        )

    def candles(self) -> list[list[float]]:
        """Open, close, low and high of each candle, oldest first."""
        series = self.chart().get("series") or [{}]
        return [each for each in series[0].get("data", []) if each[0] != "-"]

    def shaded(self) -> list[Any]:
        """The shaded gaps."""
        series = self.chart().get("series") or []
        return series[2]["markArea"]["data"] if len(series) > 2 else []

    def box(self, kind: str) -> Locator:
        """A stage of the pipeline."""
        return self.page.locator(f".box.{kind}")

    def has(self, kind: str, state: str) -> None:
        """Wait until a stage has this state."""
        self.page.wait_for_selector(f".box.{kind}.{state}")

    def _within(self, url: str) -> None:
        if not url.startswith((self.url, self.url.replace("http:", "ws:"), "data:", "blob:")):
            self.complaints.append(f"it asks for {url}")


@pytest.fixture
def walk() -> RandomWalk:
    return RandomWalk(random.Random(23))


@pytest.fixture
def simulator(walk: RandomWalk) -> Iterator[Simulator]:
    with Simulator(SimulatorConfig(rate=25), walk) as simulator:
        yield simulator


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        yield store


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 940}, color_scheme="light")
    context.set_default_timeout(PATIENCE * 1000)
    yield context
    context.close()


@pytest.fixture
def start(pipeline: Pipeline, context: BrowserContext) -> Iterator[Callable[..., Board]]:
    """Starts a dashboard. At the end it must have logged no error and exit with status 0."""
    boards: list[Board] = []

    def start(*options: str, query: str = "", **environ: str) -> Board:
        environ = {"PYTHONWARNINGS": "error", **environ}
        process = pipeline.processes.start("tickpipe", "dashboard", "--port", "0", *options, **environ)
        boards.append(Board(process, context.new_page()))
        boards[-1].open(query)
        return boards[-1]

    yield start
    for board in boards:
        assert board.complaints == []
        assert board.process.stop() == 0
        assert len(board.process.said().splitlines()) == 1, board.process.said()


@pytest.fixture
def running(pipeline: Pipeline, store: DatabaseClient, walk: RandomWalk, simulator: Simulator) -> list[Running]:
    """Store hours of prices with a gap and start a producer that continues. Returns the consumers."""
    store_history(store, walk, SYMBOLS, now=time.time() - 1, seconds=2.8 * 3600, blind=(3600, 3050))
    pipeline.prices.ensure_group()
    pipeline.producer(simulator.url, symbols=SYMBOLS)
    return [pipeline.consumer() for _ in range(2)]


@pytest.mark.usefixtures("running")
def test_chart_moves_shades_gaps_and_switches_symbols(start: Callable[..., Board], tmp_path: Path) -> None:
    board = start("--simulated", query="?symbol=BTC/USD")
    page = board.page
    assert page.inner_text(".badge") == "SIMULATED"
    assert page.inner_text(".quote h2") == "BTC/USD"
    before = board.candles()
    wait_for(lambda: board.candles()[-1] != before[-1], message="the newest candle moves")
    assert len(before) > 100
    wait_for(lambda: len(board.shaded()) == 2, message="both gaps are shaded")
    assert [area[0]["name"] for area in board.shaded()] == ["9 min", ""]  # no room for more text
    assert re.fullmatch(r"2 gaps, the newest: .* \(stopped\)", page.inner_text(".gaps"))

    for kind in ("websocket", "stream", "consumers", "database"):
        board.has(kind, "good")
    page.wait_for_selector(".member >> nth=1")
    page.wait_for_selector(".sessions >> text=complete so far")
    page.wait_for_selector(".sessions >> text=complete, counted")
    picture(page, os.environ.get("DASHBOARD_SHOT", tmp_path / "dashboard.png"))

    page.fill(".search", "eur")
    wait_for(lambda: page.locator(".symbol").count() == 1, message="one symbol matches")
    page.click(".symbol")
    wait_for(lambda: board.candles()[-1][0] < 2, message="the chart is the euro's")
    assert page.inner_text(".quote h2") == "EUR/USD"
    page.click("[data-interval='5m']")
    wait_for(lambda: len(board.candles()) < 60, message="a candle is five minutes")
    page.reload()
    wait_for(lambda: 0 < len(board.candles()) < 60, message="the address keeps symbol and interval")
    assert page.inner_text(".quote h2") == "EUR/USD"
    page.click("[data-interval='1d']")
    wait_for(lambda: len(board.candles()) <= 2, message="a candle is a day")

    page.click("text=A–Z")
    wait_for(lambda: page.inner_text(".symbols-head button") == "Change ↓")
    changes = [float(each.rstrip(" %").replace("−", "-")) for each in page.locator(".symbol-change").all_inner_texts()]
    assert sorted(changes, reverse=True)[0] == changes[0]


def test_stopped_parts_turn_red(
    start: Callable[..., Board], simulator: Simulator, running: list[Running], tmp_path: Path
) -> None:
    board = start()
    board.has("consumers", "good")
    consumer = psutil.Process(running[0].pid)
    consumer.suspend()
    board.has("consumers", "bad")
    assert "1 stopped" in board.box("consumers").inner_text()
    assert board.page.locator(".member.idle").count() == 1
    wait_for(lambda: board.page.inner_text(".headline").startswith("consumers: 1 stopped"))
    picture(board.page, tmp_path / "stopped.png")
    consumer.resume()
    board.has("consumers", "good")
    assert running[0].stop() == 0
    board.page.wait_for_function("document.querySelectorAll('.member').length === 1")
    board.has("consumers", "good")  # one has left the group, the other works

    simulator.stop()
    board.has("websocket", "bad")
    assert "disconnected" in board.box("websocket").inner_text()


@pytest.mark.usefixtures("running")
def test_hanging_database_is_reported(start: Callable[..., Board], pipeline: Pipeline) -> None:
    board = start()
    board.has("database", "good")
    rows = pipeline.database.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'tickpipe dashboard'")
    backends = [psutil.Process(pid) for (pid,) in rows]
    for backend in backends:
        backend.suspend()
    try:
        wait_for(lambda: "does not answer" in board.page.inner_text(".headline"), message="the headline shows it")
    finally:
        for backend in backends:
            backend.resume()
    wait_for(lambda: board.page.inner_text(".headline") == "all is well", message="it recovers")
    price = board.page.inner_text(".quote-price")
    wait_for(lambda: board.page.inner_text(".quote-price") != price, message="the prices move again")


@pytest.mark.usefixtures("running")
def test_page_is_readable_on_a_phone_and_in_dark_mode(start: Callable[..., Board], tmp_path: Path) -> None:
    board = start(query="?symbol=ETH/USD")
    page = board.page
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    assert dark != light
    page.click(".theme")
    assert page.evaluate(background) == light
    page.reload()
    assert page.evaluate(background) == light  # the chosen theme
    wait_for(board.candles)
    page.click(".theme")
    assert page.evaluate(background) == dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == light  # the system theme

    for width in (390, 820, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        wait_for(lambda: (len(board.candles()) <= 70) == (page.evaluate("innerWidth") == 390), message="it fits")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            picture(page, tmp_path / f"{scheme}-{width}.png")


def test_page_with_500_symbols_is_fast(start: Callable[..., Board], pipeline: Pipeline) -> None:
    pipeline.database.query(
        "INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq) "
        "SELECT now() - minute * interval '1 minute', 'S' || lpad(n::text, 3, '0'), n + 1 + minute, now(), 1, "
        "n * 100 + minute FROM generate_series(0, 499) AS n, generate_series(0, 39) AS minute"
    )
    pipeline.prices.ensure_group()
    board = start()
    page = board.page
    page.wait_for_selector("[placeholder='Search 500 symbols']")
    assert page.locator(".symbol").count() < 40  # only visible rows
    page.evaluate("document.querySelector('.symbols-rows').scrollTop = 1e6")
    page.click("[data-symbol='S499']")
    wait_for(lambda: board.candles()[-1][1] == 500, message="the chart is the last one's")
    drawn = "document.querySelector(\"[data-symbol='S499'] polyline\").getAttribute('points').split(' ').length"
    wait_for(lambda: page.evaluate(drawn) >= 29, message="its line is drawn")


def test_only_loopback_host_names_are_accepted(start: Callable[..., Board], pipeline: Pipeline) -> None:
    pipeline.database.query(
        "INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq) "
        "VALUES (now(), 'A', 1, now(), 1, 1)"
    )
    board = start()
    board.has("stream", "good")  # without a group nothing is unread
    address = urlsplit(board.url)
    for host, status in (("localhost", 200), ("evil.example", 400)):
        connection = HTTPConnection(address.hostname or "", address.port, timeout=5)
        with closing(connection):
            connection.request("GET", "/", headers={"Host": f"{host}:{address.port}"})
            assert connection.getresponse().status == status


def test_dashboard_connection_is_read_only(pipeline: Pipeline) -> None:
    with closing(DatabaseReader.read_only(Secret(pipeline.database.url))) as reader:
        assert reader.rows("SELECT 1") == [(1,)]
        with pytest.raises(DatabaseOutageError, match="read-only transaction"):
            reader.rows("DELETE FROM prices_real_time RETURNING 1")
        assert reader.rows("SELECT 2") == [(2,)]


def picture(page: Page, path: Path | str) -> None:
    """Take a screenshot after the page is drawn. Copy it to the folder DASHBOARD_SHOTS if that is set."""
    page.mouse.move(0, 0)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    whole = (page.viewport_size or {"width": 0})["width"] < 1000
    page.screenshot(path=path, full_page=whole)
    if folder := os.environ.get("DASHBOARD_SHOTS"):
        shutil.copy(path, folder)
