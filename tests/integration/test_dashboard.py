"""The dashboard in a real browser, on a real pipeline. Its picture for the README is taken here.

`DASHBOARD_SHOT=docs/dashboard.png` says where the picture goes; otherwise it stays in the test's folder.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from common.settings import Secret
from consumer.store import PriceStore
from tests.support.history import store_history
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.waiting import wait_for
from tickpipe.simulator import RandomWalk, Simulator, SimulatorConfig

SYMBOLS = ["AAPL", "BTC/USD", "ETH/USD", "EUR/USD", "MSFT", "NVDA", "SOL/USD", "SPY", "USD/JPY", "XAU/USD"]
PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
PROGRAM_OF_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
#: As root there is no sandbox; the rest keeps the browser from talking to anybody but us.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, [*PROGRAMS, PROGRAM_OF_MACOS])), None)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium or Chrome here: install one")
        pytest.skip("no Chromium or Chrome here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


class Board:
    """A dashboard that runs, and the page in a browser."""

    def __init__(self, process: Running, page: Page) -> None:
        self.process = process
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: self._within(request.url))

    @property
    def url(self) -> str:
        """Where it is, once it says so."""
        found = re.search(r"dashboard: (http://\S+)", self.process.said())
        return found[1] if found else ""

    def open(self, query: str = "") -> None:
        """Load the page, and wait for its chart."""
        wait_for(lambda: self.url, 20, "the dashboard tells its address")
        self.page.goto(self.url + query)
        wait_for(self.candles, 20, "the chart has candles")

    def chart(self) -> Any:
        """The options of the chart that is shown."""
        return self.page.evaluate(
            """() => {
                const element = document.querySelector(".chart");
                const chart = element && getElement(Number(element.id.slice(1)))?.chart;
                return chart?.getOption() ?? {};
            }"""
        )

    def candles(self) -> list[list[float]]:
        """Open, close, low and high of each candle, the oldest first."""
        series = self.chart().get("series") or [{}]
        return [each for each in series[0].get("data", []) if each[0] != "-"]

    def shaded(self) -> list[Any]:
        """The gaps that the chart shades."""
        series = self.chart().get("series") or []
        return series[2]["markArea"]["data"] if len(series) > 2 else []

    def box(self, kind: str) -> Locator:
        """A stage of the pipeline."""
        return self.page.locator(f".box.{kind}")

    def has(self, kind: str, state: str, timeout: float = 15.0) -> None:
        """Wait until a stage is so."""
        self.page.wait_for_selector(f".box.{kind}.{state}", timeout=timeout * 1000)

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
def store(pipeline: Pipeline) -> Iterator[PriceStore]:
    with closing(PriceStore(Secret(pipeline.database.url))) as store:
        yield store


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 940}, color_scheme="light")
    context.set_default_timeout(15_000)
    yield context
    context.close()


@pytest.fixture
def start(pipeline: Pipeline, context: BrowserContext) -> Iterator[Callable[..., Board]]:
    """Starts a dashboard; at the end it must have said nothing wrong, and end with status 0."""
    boards: list[Board] = []

    def start(*options: str, query: str = "", **environ: str) -> Board:
        process = pipeline.processes.start("tickpipe", "dashboard", "--port", "0", *options, **environ)
        boards.append(Board(process, context.new_page()))
        boards[-1].open(query)
        return boards[-1]

    yield start
    for board in boards:
        assert board.complaints == []
        assert board.process.stop() == 0
        assert len(board.process.said().splitlines()) == 1, board.process.said()


def test_the_chart_moves_symbols_switch_and_gaps_are_shaded(
    start: Callable[..., Board], pipeline: Pipeline, store: PriceStore, walk: RandomWalk, simulator: Simulator,
    tmp_path: Path,
) -> None:  # fmt: skip
    store_history(store, walk, SYMBOLS, now=time.time() - 1, seconds=2.8 * 3600, blind=(3600, 3050))
    pipeline.producer(simulator.url, symbols=SYMBOLS)
    consumers = [pipeline.consumer() for _ in range(2)]
    pipeline.prices.ensure_group()
    board = start("--simulated", query="?symbol=BTC/USD")
    page = board.page

    assert page.inner_text(".badge") == "SIMULATED"
    assert page.inner_text(".quote h2") == "BTC/USD"
    before = board.candles()
    wait_for(lambda: board.candles()[-1] != before[-1], message="the newest candle moves")
    assert len(before) > 100
    assert [area[0]["name"].split("\n")[0] for area in board.shaded()] == ["9 min", ""]  # no room for more
    assert re.fullmatch(r"2 gaps, the newest: .* \(stopped\)", page.inner_text(".gaps"))

    page.fill(".search", "eur")
    assert page.locator(".symbol").count() == 1
    page.click(".symbol")
    page.wait_for_function("document.querySelector('.quote h2').innerText === 'EUR/USD'")
    wait_for(lambda: board.candles()[-1][0] < 2, message="the chart is the euro's")
    assert "symbol=EUR%2FUSD" in page.url
    page.fill(".search", "")
    page.click("[data-interval='5m']")
    wait_for(lambda: len(board.candles()) < 60, message="five minutes a candle")
    page.click("[data-interval='1m']")
    page.click("[data-symbol='BTC/USD']")
    wait_for(lambda: board.candles() and board.candles()[-1][0] > 1000, message="the chart is the coin's again")

    for kind in ("websocket", "stream", "consumers", "database"):
        board.has(kind, "good")
    page.wait_for_selector(".member >> nth=1")
    page.wait_for_selector(".sessions >> text=complete so far")
    page.wait_for_selector(".sessions >> text=complete, counted")
    page.mouse.move(0, 0)
    page.screenshot(path=os.environ.get("DASHBOARD_SHOT", tmp_path / "dashboard.png"))
    _other_pictures(board)

    psutil.Process(consumers[0].pid).suspend()
    board.has("consumers", "bad")
    assert "1 stopped" in board.box("consumers").inner_text()
    page.wait_for_selector(".headline.bad")
    _picture(page, "stopped")
    psutil.Process(consumers[0].pid).resume()
    board.has("consumers", "good")

    simulator.stop()
    board.has("websocket", "bad", timeout=30)
    assert "disconnected" in board.box("websocket").inner_text()


SHOTS = os.environ.get("DASHBOARD_SHOTS")


def _picture(page: Page, name: str, *, whole: bool = False) -> None:
    if SHOTS:
        page.wait_for_timeout(600)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=whole)


def _other_pictures(board: Board) -> None:
    if not SHOTS:
        return
    page = board.page
    _picture(page, "light-1280")
    page.mouse.move(620, 300)
    _picture(page, "light-1280-pointer")
    page.mouse.move(0, 0)
    page.emulate_media(color_scheme="dark")
    _picture(page, "dark-1280")
    page.set_viewport_size({"width": 390, "height": 844})
    _picture(page, "dark-390", whole=True)
    page.emulate_media(color_scheme="light")
    _picture(page, "light-390", whole=True)
    page.set_viewport_size({"width": 900, "height": 900})
    _picture(page, "light-900", whole=True)
    page.set_viewport_size({"width": 1600, "height": 1000})
    _picture(page, "light-1600")
    page.set_viewport_size({"width": 1280, "height": 940})
