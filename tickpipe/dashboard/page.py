"""The page: its layout, and the updates that are sent to the browser."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.html import Html

from common.errors import TickpipeError
from common.terminal import printable
from tickpipe import formatting
from tickpipe.dashboard import chart, fragments
from tickpipe.dashboard.boxes import boxes, headline
from tickpipe.dashboard.history import INTERVALS, MAX_CANDLES, ChartData, Charts, Interval
from tickpipe.dashboard.quotes import Quote, Quotes
from tickpipe.inspect.snapshot import Snapshot

HERE = Path(__file__).parent
STYLE = "".join((HERE / f"{name}.css").read_text(encoding="utf-8") for name in ("theme", "prices", "pipeline"))
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
#: Candles of a chart in a narrow window, at most.
MAX_CANDLES_NARROW = 70
#: Seconds after which the page shows that a server does not answer. A server that hangs returns no error.
ANSWER_TIMEOUT = 8.0


@dataclass(frozen=True)
class Sources:
    """The page's data, shared by all browsers."""

    quotes: Quotes
    charts: Charts
    pipeline: Callable[[], Snapshot]


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """The stream's name, whether prices are simulated, and the seconds between two updates."""

    stream: str
    simulated: bool
    prices_every: float
    pipeline_every: float


class Label(Element):
    """A text in an HTML tag of its own."""

    def __init__(self, tag: str, text: str, classes: str = "") -> None:
        super().__init__(tag)
        self.classes(classes)
        self._text = printable(text)

    def set_text(self, text: str) -> None:
        """Send a new text, if it differs."""
        text = printable(text)
        if text != self._text:
            self._text = text
            self.update()


class SymbolList(Element, component="symbols.js"):
    """All symbols with price, change and line. The browser draws, sorts and searches them."""

    def __init__(self, on_pick: Callable[[str], Awaitable[None]], on_narrow: Callable[[bool], None]) -> None:
        """`on_pick` receives the symbol that was clicked, `on_narrow` whether the window is narrow."""
        super().__init__()
        self.classes("symbols")
        self.on("pick", lambda event: on_pick(str(event.args)))
        self.on("narrow", lambda event: on_narrow(bool(event.args)))
        self._sent: dict[str, Quote] = {}

    def select(self, symbol: str) -> None:
        """Mark a symbol as selected."""
        self.props["selected"] = symbol

    def show(self, quotes: Iterable[Quote]) -> None:
        """Send the quotes that have changed."""
        changed = [quote for quote in quotes if self._sent.get(quote.symbol) is not quote]
        if changed:
            self.run_method("patch", [self._patch(quote) for quote in changed])
            self._sent |= {quote.symbol: quote for quote in changed}

    def _patch(self, quote: Quote) -> list[object]:
        sent = self._sent.get(quote.symbol)
        past = list(quote.closes.items()) if sent is None or sent.has_past != quote.has_past else None
        return [
            quote.symbol,
            quote.price,
            formatting.price(quote.price, quote.decimals),
            formatting.change(quote.change),
            quote.change,
            int(quote.time // 60),
            past,
        ]


class Stage(NamedTuple):
    """The elements of one stage of the pipeline."""

    kind: str
    box: Element
    figure: Html
    lines: Html


def build(sources: Sources, config: PageConfig) -> None:
    """Register the page."""

    @ui.page("/")
    def page(symbol: str = "", interval: str = "") -> None:
        ui.add_head_html(f"<style>{STYLE}</style><script>{SCRIPT}</script>")
        DashboardPage(sources, config, symbol, INTERVALS.get(interval, INTERVALS["1m"]))


class DashboardPage:
    """One browser's page."""

    def __init__(self, sources: Sources, config: PageConfig, symbol: str, interval: Interval) -> None:
        self._sources = sources
        self._config = config
        self._symbol = symbol
        self._interval = interval
        self._chart_key: tuple[str, Interval, int] | None = None  # the chart whose axes are drawn
        self._prices_error = ""
        self._reading: asyncio.Task[Snapshot] | None = None
        self._max_candles = MAX_CANDLES
        self._build_header()
        with _element("main", "board"):
            with _element("aside", "card upper symbols-card"):
                self._symbols = SymbolList(self._pick_symbol, self._set_narrow)
                self._symbols.select(symbol)
            with _element("section", "card upper chart-card"):
                self._build_chart()
            with _element("aside", "card upper ticks-card"):
                with _element("div", "card-head"):
                    Label("h2", "Latest ticks")
                self._ticks = _html("scroll")
            with _element("section", "card wide"):
                self._build_pipeline()
            with _element("section", "card wide sessions-card"):
                with _element("div", "card-head"):
                    Label("h2", "Sessions")
                    Label("span", "runs of producers, and whether every price received is stored", "muted")
                self._sessions = _html("")
        Label("footer", "Times in UTC. This page is read-only.", "foot")
        ui.timer(config.prices_every, self._update_prices)
        ui.timer(config.pipeline_every, self._update_pipeline)

    # Layout.

    def _build_header(self) -> None:
        with _element("header", "head"):
            _html("brand", f"{fragments.ICON}<h1>tickpipe</h1>")
            if self._config.simulated:
                Label("span", "SIMULATED", "badge")
            with _element("div", "headline idle") as self._headline:
                _element("i", "dot")
                self._headline_text = Label("span", "loading …")
            toggle = _html("plain theme", fragments.THEME_ICON, tag="button")
            toggle.on("click", js_handler="() => tickpipe.toggle()")
            toggle.props('title="Light or dark" aria-label="Light or dark" data-testid="theme"')

    def _build_chart(self) -> None:
        with _element("div", "quote"):
            self._name = Label("h2", "…")
            self._price = Label("span", "", "quote-price")
            self._change = Label("span", "")
            with _element("div", "intervals"):
                self._buttons = {name: self._button(interval) for name, interval in INTERVALS.items()}
        self._facts = _html("facts")
        self._chart = ui.echart({}, renderer="svg").classes("chart")
        self._gaps = Label("div", "", "gaps")

    def _button(self, interval: Interval) -> Element:
        button = Label("button", interval.name, "chosen" if interval == self._interval else "")
        return button.on("click", lambda: self._pick_interval(interval)).props(f'data-interval="{interval.name}"')

    def _build_pipeline(self) -> None:
        with _element("div", "card-head"):
            Label("h2", "Pipeline")
            self._latency = _html("muted latency")
        names = {"websocket": "Websocket", "stream": f"Redis stream “{self._config.stream}”"}
        names |= {"consumers": "Consumers", "database": "Database"}
        self._stages: list[Stage] = []
        with _element("div", "pipeline"):
            for kind, name in names.items():
                if self._stages:
                    _html("arrow", fragments.ARROW)
                with _element("div", f"box idle {kind}") as box:
                    Label("div", name, "box-name")
                    self._stages.append(Stage(kind, box, _html("box-figure"), _html("")))
                    if kind == "consumers":
                        self._members = _html("members")

    # Input from the browser.

    def _set_narrow(self, narrow: bool) -> None:
        self._max_candles = MAX_CANDLES_NARROW if narrow else MAX_CANDLES

    async def _pick_symbol(self, symbol: str) -> None:
        self._symbol = symbol
        self._symbols.select(symbol)
        await self._update_address()

    async def _pick_interval(self, interval: Interval) -> None:
        self._interval = interval
        for name, button in self._buttons.items():
            button.classes(replace="chosen" if name == interval.name else "")
        await self._update_address()

    async def _update_address(self) -> None:
        ui.navigate.history.replace("?" + urlencode({"symbol": self._symbol, "interval": self._interval.name}))
        await self._update_prices()

    # Updates to the browser.

    async def _update_prices(self) -> None:
        try:
            quotes = await asyncio.to_thread(self._sources.quotes.read)
            self._symbols.show(quotes.values())
            if quotes and self._symbol not in quotes:
                self._symbol = next(iter(quotes))
                self._symbols.select(self._symbol)
            if self._symbol in quotes:
                await self._update_chart(quotes[self._symbol], self._interval)
            self._prices_error = ""
        except TickpipeError as error:
            self._prices_error = str(error)

    async def _update_chart(self, quote: Quote, interval: Interval) -> None:
        data = await asyncio.to_thread(self._sources.charts.read, quote.symbol, interval)
        if (quote.symbol, interval) != (self._symbol, self._interval):
            return  # the user picked another one during the query
        now = time.time()
        self._draw(quote, data, interval, now)
        self._name.set_text(quote.symbol)
        self._price.set_text(formatting.price(quote.price, quote.decimals))
        self._change.set_text(f"{formatting.change(quote.change)} in {quote.minutes} min")
        self._change.classes(replace=fragments.direction(quote.change))
        self._facts.content = fragments.facts(quote, data, now)
        self._ticks.content = fragments.ticks(data.ticks, quote.decimals)

    def _draw(self, quote: Quote, data: ChartData, interval: Interval, now: float) -> None:
        axis = chart.slots(data.candles, data.gaps, interval.seconds, self._max_candles, now)
        areas = chart.areas(axis, data.gaps, now)
        changes = chart.data(axis, areas, quote.decimals, now)
        key = (quote.symbol, interval, quote.decimals)
        if self._chart_key == key:
            self._chart.run_chart_method("setOption", changes)
        else:
            self._chart.options.clear()
            self._chart.options.update(chart.merged(chart.options(*key), changes))
            self._chart.update()
            self._chart_key = key
        self._gaps.set_text(fragments.gaps([area.gap for area in areas]))
        self._gaps.classes(replace="gaps some" if areas else "gaps")

    async def _update_pipeline(self) -> None:
        # A reading that hangs is awaited again at the next update. A new one each time would leave threads behind.
        self._reading = self._reading or asyncio.create_task(asyncio.to_thread(self._sources.pipeline))
        await asyncio.wait([self._reading], timeout=ANSWER_TIMEOUT)
        if not self._reading.done():
            self._headline.classes(replace="headline bad")
            self._headline_text.set_text("Redis or the database does not answer: this page shows old data")
            return
        reading, self._reading = self._reading, None
        snapshot = reading.result()
        state, text = ("bad", self._prices_error) if self._prices_error else headline(snapshot)
        self._headline.classes(replace=f"headline {state}")
        self._headline_text.set_text(text)
        for stage, box in zip(self._stages, boxes(snapshot), strict=True):
            stage.box.classes(replace=f"box {box.state} {stage.kind}")
            stage.figure.content = fragments.figure(box)
            stage.lines.content = fragments.lines(box)
        self._members.content = fragments.members(snapshot.consumers)
        self._latency.content = fragments.latency(snapshot)
        self._sessions.content = fragments.sessions(snapshot)


def _element(tag: str, classes: str) -> Element:
    return Element(tag).classes(classes)


def _html(classes: str, content: str = "", *, tag: str = "div") -> Html:
    """An element with HTML of `fragments`, which escapes foreign text. The browser need not sanitize it again."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)
