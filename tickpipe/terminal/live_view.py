"""The live view: on a terminal a table that is refreshed in place, elsewhere plain lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from common.formatting import counted
from common.terminal import printable
from tickpipe import formatting
from tickpipe.inspect.snapshot import Candle, Snapshot, SymbolStatus
from tickpipe.inspect.symbols import MINUTES

_BARS = "▁▂▃▄▅▆▇█"
#: Columns that all but the candles need. Narrower terminals show the second set, without open, high and low.
WIDE_COLUMNS, NARROW_COLUMNS = 74, 41
#: Lines of the view that are not symbols.
FRAME_LINES = 13
#: Symbols in a plain line, at most.
MAX_LINE_SYMBOLS = 8


def render(snapshot: Snapshot, *, title: str, footer: str, width: int, height: int) -> Panel:
    """The view for a terminal of `width` columns and `height` lines. Narrow terminals show fewer candles."""
    room = max(1, height - FRAME_LINES)
    more = len(snapshot.symbols) - room
    parts: list[RenderableType] = [
        _table(snapshot.symbols[:room], width),
        Text(f"… and {counted(more, 'more symbol')}" if more > 0 else "", style="dim"),
        _figures(snapshot),
    ]
    parts += [Text(str(snapshot.sizes), style="dim")] if snapshot.sizes else []
    message, style = (snapshot.error, "bold red") if snapshot.error else (snapshot.note or footer, "dim")
    parts.append(Text(printable(message), style=style))
    return Panel(
        Group(*parts),
        title=Text(printable(title)),
        title_align="left",
        border_style="yellow" if "SIMULATED" in title else "green",
    )


def _table(symbols: Sequence[SymbolStatus], width: int) -> Table:
    names, other_columns = ["price", "age", "open", "high", "low", "ticks"], WIDE_COLUMNS
    if width < WIDE_COLUMNS:
        names, other_columns = ["price", "age", "ticks"], NARROW_COLUMNS
    candles = max(1, min(MINUTES, width - other_columns))
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("symbol", style="bold", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"{candles} min", no_wrap=True, min_width=candles)
    for symbol in symbols:
        row = _row(symbol, candles)
        table.add_row(*row[:3], *row[-1 - len(names[2:]) :])
    if not symbols:
        table.add_row("waiting for the first price …")
    return table


def line(snapshot: Snapshot, *, title: str) -> str:
    """The view as one plain line."""
    shown, more = snapshot.symbols[:MAX_LINE_SYMBOLS], len(snapshot.symbols) - MAX_LINE_SYMBOLS
    prices = "  ".join(f"{symbol.symbol} {_price(symbol.price)}" for symbol in shown)
    prices += f"  … and {more} more" if more > 0 else ""
    message = f"  ERROR {snapshot.error}" if snapshot.error else f"  {snapshot.note}" if snapshot.note else ""
    return printable(f"{title}  {figures(snapshot)}  {prices}{message}")


def figures(snapshot: Snapshot) -> str:
    """Counts, backlog, rate, consumers and latencies in one line."""
    rate = f"rows/s {snapshot.stored_rate:,.1f}"
    return f"received {snapshot.received:,}  stored {snapshot.stored:,}  {momentary_figures(snapshot, rate)}"


def momentary_figures(snapshot: Snapshot, *more: str) -> str:
    """The figures that a single snapshot can show: no counts and no rate, since both need a period."""
    parts = [f"backlog {snapshot.waiting:,}"]
    parts += [f"dead letters {snapshot.dead_letters:,}"] if snapshot.dead_letters else []
    parts += [*more, f"consumers {snapshot.active_consumers}"]
    parts += [f"idle {snapshot.idle_consumers}"] if snapshot.idle_consumers else []
    parts += [f"latency p50 {_milliseconds(snapshot.latency_p50)} p99 {_milliseconds(snapshot.latency_p99)}"]
    return "  ".join(parts)


def _figures(snapshot: Snapshot) -> Text:
    text = Text(figures(snapshot))
    text.highlight_regex(r"(?<!p)\b[\d,.]+( ms)?", "bold cyan")
    return text


def _row(symbol: SymbolStatus, candles: int) -> list[Text | str]:
    now = symbol.candles[-1] if symbol.candles else None
    style = "green" if now is None or now.close >= now.open else "red"
    parts = [_price(value) for value in (now.open, now.high, now.low)] if now else ["", "", ""]
    return [
        Text(printable(symbol.symbol)),
        Text(_price(symbol.price), style=f"bold {style}"),
        age(symbol.age),
        *parts,
        f"{symbol.ticks:,}",
        candle_line(symbol.candles[-candles:]),
    ]


def candle_line(candles: Sequence[Candle]) -> Text:
    """One bar per close, scaled from the lowest low to the highest high: green for a rise, red for a fall."""
    text = Text()
    if not candles:
        return text
    low, high = min(candle.low for candle in candles), max(candle.high for candle in candles)
    for candle in candles:
        share = (candle.close - low) / (high - low) if high > low else 0.5
        text.append(_BARS[round(share * (len(_BARS) - 1))], style="green" if candle.close >= candle.open else "red")
    return text


def _price(value: float) -> str:
    size = abs(value)
    return f"{value:.5g}" if size < 0.1 else f"{value:,.{2 if size >= 1000 else 4 if size >= 10 else 5}f}"


def age(seconds: float) -> str:
    """The age of a tick, below 100 s with one decimal."""
    return f"{max(seconds, 0):.1f} s" if seconds < 100 else formatting.span(seconds)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"
