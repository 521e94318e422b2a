"""Measures how much an open dashboard slows a drain. Browser, dashboard, database and consumer share the cores."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Error

from benchmarks import ticks
from benchmarks.clients import Client
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample, rate
from benchmarks.servers import DATABASE, STREAM, Bench
from tickpipe.dashboard import HOST, free_port

PART = "dashboard"
CLOSED, OPEN = "drain, no dashboard", "drain, the dashboard open in a browser"
RATIOS = [Ratio(PART, "rate", OPEN, CLOSED)]
#: Size of this drain relative to the other drains. A drain of two seconds is too short to compare.
DRAINS = 3
#: Seconds for the browser and page to become idle. A drain without them waits as long.
REST = 3.0


def part(bench: Bench, scale: Scale, browser: Callable[[], Browser]) -> Part:
    """The same drain with and without the dashboard. Prices are of the last minutes, so that the page draws them."""
    count, source = DRAINS * scale.events, f"{STREAM}:of-now"

    def load() -> None:
        ticks.load(bench.redis, source, count, begin=int(time.time()) - count // ticks.MARKET_RATE)

    def drain() -> Sample:
        bench.settle(DATABASE)
        time.sleep(REST)
        bench.consumer(DATABASE, 1000, "--drain").wait()
        commits = bench.commits(DATABASE)
        if (rows := sum(commit.rows for commit in commits)) != count:
            raise RuntimeError(f"{rows} rows are stored of {count}")
        return {"rate": rate(commits)}

    def fill() -> None:
        bench.empty_stream()
        bench.empty(DATABASE)
        bench.redis.copy(source, STREAM)

    def closed(_round: int) -> Sample:
        fill()
        return drain()

    def opened(_round: int) -> Sample:
        fill()
        with shown(bench, browser()):
            return drain()

    seconds = REST + 2 + count / 50_000
    cases = [Case(CLOSED, seconds, closed), Case(OPEN, seconds + 3, opened)]
    return Part(PART, scale.dashboard_rounds, [Preparation(f"loading {count:,} entries", count / 40_000, load)], cases)


@contextmanager
def shown(bench: Bench, browser: Browser) -> Iterator[None]:
    """Serve the dashboard and open its page."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("tickpipe")), "dashboard", "--port", str(port)]
    server = Client(command, bench.environment(DATABASE), bench.folder)
    page = browser.new_page(viewport={"width": 1280, "height": 940})
    try:
        for _ in range(100):  # until it listens
            try:
                page.goto(f"http://{HOST}:{port}")
                break
            except Error:
                time.sleep(0.1)
        page.wait_for_selector(".box.good")
        yield
    finally:
        page.close()
        server.stop()
