"""The page: what is where, and what is sent to the browser when something has changed."""

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
from tickpipe.dashboard.boxes import Health, HealthMonitor, boxes, headline
from tickpipe.dashboard.history import MOST, Charts, Look
from tickpipe.dashboard.quotes import Quote, Quotes
from tickpipe.inspect.database import INTERVALS, Interval

HERE = Path(__file__).parent
STYLE = (HERE / "style.css").read_text(encoding="utf-8")
#: Most candles on a chart, and on one of a telephone.
WIDE, NARROW = MOST, 70
#: Seconds after which a look that has not come back is told: a server that hangs gives no error.
ANSWERED_WITHIN = 8.0
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Lookouts:
    """Where the page's values come from; shared by all browsers."""

    quotes: Quotes
    charts: Charts
    pipeline: HealthMonitor


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the page says of itself, and the seconds between two updates."""

    stream: str
    simulated: bool
    prices_every: float
    health_every: float


class Label(Element):
    """A text in a tag of its own."""

    def __init__(self, tag: str, words: str, classes: str = "") -> None:
        super().__init__(tag)
        self.classes(classes)
        self._text = printable(words)

    def say(self, words: str) -> None:
        """Other words, sent where they differ."""
        words = printable(words)
        if words != self._text:
            self._text = words
            self.update()


class SymbolList(Element, component="symbols.js"):
    """All symbols with price, change and small line; drawn, sorted and searched in the browser."""

    def __init__(self, pick: Callable[[str], Awaitable[None]], narrow: Callable[[bool], None]) -> None:
        """`pick` is told which symbol was clicked, `narrow` whether the window is."""
        super().__init__()
        self.classes("symbols")
        self.on("pick", lambda event: pick(str(event.args)))
        self.on("narrow", lambda event: narrow(bool(event.args)))
        self._sent: dict[str, Quote] = {}

    def select(self, symbol: str) -> None:
        """Mark this one."""
        self.props["selected"] = symbol

    def show(self, quotes: Iterable[Quote]) -> None:
        """Send what has changed."""
        changed = [quote for quote in quotes if self._sent.get(quote.symbol) is not quote]
        if changed:
            self.run_method("patch", [self._patch(quote) for quote in changed])
            self._sent |= {quote.symbol: quote for quote in changed}

    def _patch(self, quote: Quote) -> list[object]:
        sent = self._sent.get(quote.symbol)
        past = list(quote.closes.items()) if sent is None or sent.drawn != quote.drawn else None
        words = formatting.price(quote.price, quote.places)
        return [
            quote.symbol,
            quote.price,
            words,
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


def build(look: Lookouts, shown: Shown) -> None:
    """Register the page."""

    @ui.page("/")
    def board(symbol: str = "", interval: str = "") -> None:
        ui.add_head_html(f"<style>{STYLE}</style><script>{SCRIPT}</script>")
        Board(look, shown, symbol, INTERVALS.get(interval, INTERVALS["1m"]))


class Board:
    """One browser's page."""

    def __init__(self, look: Lookouts, shown: Shown, symbol: str, interval: Interval) -> None:
        self._look = look
        self._shown = shown
        self._symbol = symbol
        self._interval = interval
        self._drawn: tuple[str, Interval, int] | None = None  # what the chart's axes were made for
        self._trouble: str | None = None
        self._looking: asyncio.Task[Health] | None = None
        self._most = WIDE
        self._head()
        with _element("main", "board"):
            with _element("aside", "card upper symbols-card"):
                self._symbols = SymbolList(self._pick, self._fit)
                self._symbols.select(symbol)
            with _element("section", "card upper chart-card"):
                self._chart_card()
            with _element("aside", "card upper ticks-card"):
                with _element("div", "card-head"):
                    Label("h2", "Latest ticks")
                self._ticks = _html("scroll")
            with _element("section", "card wide"):
                self._pipeline()
            with _element("section", "card wide sessions-card"):
                with _element("div", "card-head"):
                    Label("h2", "Sessions")
                    Label("span", "the runs of producers, and whether all that each received is stored", "muted")
                self._sessions = _html("")
        Label("footer", "Times in UTC. This page only reads: nothing can be changed through it.", "foot")
        ui.timer(shown.prices_every, self._prices)
        ui.timer(shown.health_every, self._health)

    # What is where.

    def _head(self) -> None:
        with _element("header", "head"):
            _html("brand", f"{fragments.ICON}<h1>tickpipe</h1>")
            if self._shown.simulated:
                Label("span", "SIMULATED", "badge")
            with _element("div", "headline idle") as self._headline:
                _element("i", "dot")
                self._words = Label("span", "looking …")
            toggle = _html("plain theme", fragments.HALF, tag="button").on(
                "click", js_handler="() => tickpipe.toggle()"
            )
            toggle.props('title="Light or dark" aria-label="Light or dark" data-testid="theme"')

    def _chart_card(self) -> None:
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
        return button.on("click", lambda: self._choose(interval)).props(f'data-interval="{interval.name}"')

    def _pipeline(self) -> None:
        with _element("div", "card-head"):
            Label("h2", "Pipeline")
            self._latency = _html("muted latency")
        names = {"websocket": "Websocket", "stream": f"Redis stream “{self._shown.stream}”"}
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

    # What the browser asks for.

    def _fit(self, narrow: bool) -> None:
        self._most = NARROW if narrow else WIDE

    async def _pick(self, symbol: str) -> None:
        self._symbol = symbol
        self._symbols.select(symbol)
        await self._chosen()

    async def _choose(self, interval: Interval) -> None:
        self._interval = interval
        for name, button in self._buttons.items():
            button.classes(replace="chosen" if name == interval.name else "")
        await self._chosen()

    async def _chosen(self) -> None:
        ui.navigate.history.replace("?" + urlencode({"symbol": self._symbol, "interval": self._interval.name}))
        await self._prices()

    # What is sent to it.

    async def _prices(self) -> None:
        try:
            quotes = await asyncio.to_thread(self._look.quotes.look)
            self._symbols.show(quotes.values())
            if quotes and self._symbol not in quotes:
                self._symbol = next(iter(quotes))
                self._symbols.select(self._symbol)
            if self._symbol in quotes:
                await self._show(quotes[self._symbol], self._interval)
            self._trouble = None
        except TickpipeError as error:
            self._trouble = str(error)

    async def _show(self, quote: Quote, interval: Interval) -> None:
        look = await asyncio.to_thread(self._look.charts.look, quote.symbol, interval)
        if (quote.symbol, interval) != (self._symbol, self._interval):
            return  # another one was chosen meanwhile
        now = time.time()
        self._draw(quote, look, interval, now)
        self._name.say(quote.symbol)
        self._price.say(formatting.price(quote.price, quote.places))
        self._change.say(f"{formatting.change(quote.change)} in {quote.minutes} min")
        self._change.classes(replace=fragments.direction(quote.change))
        self._facts.content = fragments.facts(quote, look, now)
        self._ticks.content = fragments.ticks(look.ticks, quote.places)

    def _draw(self, quote: Quote, look: Look, interval: Interval, now: float) -> None:
        axis = chart.places(look.candles, look.gaps, interval.seconds, self._most, now)
        gaps = chart.areas(axis, look.gaps, now)
        changes = chart.data(axis, gaps, quote.places, now)
        wanted = (quote.symbol, interval, quote.places)
        if self._drawn == wanted:
            self._chart.run_chart_method("setOption", changes)
        else:
            self._chart.options.clear()
            self._chart.options.update(chart.whole(chart.options(*wanted), changes))
            self._chart.update()
            self._drawn = wanted
        self._gaps.say(fragments.gaps([gap for *_, gap in gaps]))
        self._gaps.classes(replace="gaps some" if gaps else "gaps")

    async def _health(self) -> None:
        # One look at a time, which outlives this turn: else each turn would leave a thread behind that hangs.
        self._looking = self._looking or asyncio.create_task(asyncio.to_thread(self._look.pipeline.look))
        await asyncio.wait([self._looking], timeout=ANSWERED_WITHIN)
        if not self._looking.done():
            self._headline.classes(replace="headline bad")
            self._words.say("Redis or the database gives no answer: what is below is old")
            return
        looking, self._looking = self._looking, None
        health = looking.result()
        state, words = ("bad", self._trouble) if self._trouble else headline(health)
        self._headline.classes(replace=f"headline {state}")
        self._words.say(words)
        for stage, box in zip(self._stages, boxes(health), strict=True):
            stage.box.classes(replace=f"box {box.state} {stage.kind}")
            stage.figure.content = fragments.figure(box)
            stage.lines.content = fragments.lines(box)
        self._members.content = fragments.members(health.consumers)
        self._latency.content = fragments.latency(health)
        self._sessions.content = fragments.sessions(health)


def _element(tag: str, classes: str) -> Element:
    return Element(tag).classes(classes)


def _html(classes: str, content: str = "", *, tag: str = "div") -> Html:
    """HTML of ours: what is not is escaped in `parts`, so the browser need not clean it twice a second."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)
