"""The live view: on a terminal a table refreshed in place, elsewhere plain lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from common.terminal import printable
from tickpipe import formatting as written
from tickpipe.inspect.reader import MINUTES, Candle, Status, SymbolStatus
from tickpipe.inspect.sizes import Sizes

_BARS = "▁▂▃▄▅▆▇█"
#: Columns that everything but the small line of candles takes; on a terminal too narrow for it open, high and low go.
REST, NARROW = 74, 41


def render(status: Status, *, title: str, footer: str, width: int, height: int) -> Panel:
    """The view for a terminal of `width` columns and `height` lines: on a narrow one, fewer candles."""
    room = max(1, height - 13)
    names, rest = ["price", "age", "open", "high", "low", "ticks"], REST
    if width < REST:
        names, rest = ["price", "age", "ticks"], NARROW
    candles = max(1, min(MINUTES, width - rest))
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("symbol", style="bold", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"{candles} min", no_wrap=True, min_width=candles)
    for symbol in status.symbols[:room]:
        row = _row(symbol, candles)
        table.add_row(*row[:3], *row[-1 - len(names[2:]) :])
    if not status.symbols:
        table.add_row("waiting for the first price …")
    more = len(status.symbols) - room
    parts: list[RenderableType] = [
        table,
        Text(f"… and {more} more symbols", style="dim") if more > 0 else Text(""),
        _figures(status),
    ]
    parts += [Text(sizes(status.sizes), style="dim")] if status.sizes else []
    words, style = (status.trouble, "bold red") if status.trouble else (status.note or footer, "dim")
    parts.append(Text(printable(words), style=style))
    return Panel(
        Group(*parts),
        title=Text(printable(title)),
        title_align="left",
        border_style="yellow" if "SIMULATED" in title else "green",
    )


def line(status: Status, *, title: str) -> str:
    """The view as one plain line."""
    prices = "  ".join(f"{symbol.symbol} {_price(symbol.price)}" for symbol in status.symbols[:8])
    prices += f"  … and {len(status.symbols) - 8} more" if len(status.symbols) > 8 else ""
    word = f"  TROUBLE {status.trouble}" if status.trouble else f"  {status.note}" if status.note else ""
    return printable(f"{title}  {figures(status)}  {prices}{word}")


def figures(status: Status) -> str:
    """The pipeline's figures in one line."""
    rate = f"rows/s {status.rows_per_second:,.1f}"
    return f"received {status.received:,}  stored {status.stored:,}  {standing(status, rate)}"


def standing(status: Status, *more: str) -> str:
    """What one look can tell: no rate, and no counts, which are of different spans."""
    words = [f"backlog {status.backlog:,}"]
    words += [f"dead letters {status.dead_letters:,}"] if status.dead_letters else []
    words += [*more, f"consumers {status.consumers}"]
    words += [f"silent {status.silent}"] if status.silent else []
    words += [f"latency p50 {_milliseconds(status.latency_p50)} p99 {_milliseconds(status.latency_p99)}"]
    return "  ".join(words)


def members(consumers: int, silent: int) -> str:
    """The consumers of a group; a killed one's name stays for a while."""
    return f"{consumers} consumers" + (f" and {silent} silent" if silent else "")


def sizes(now: Sizes) -> str:
    """How large things are, how fast they grow, and how long that can go on, in one line of 76 columns."""
    parts = [f"table {written.size(now.table_bytes)}{_growth(now.table_bytes_per_day_estimated)}"]
    if now.stream_bytes is not None:
        parts.append(f"stream {written.size(now.stream_bytes)}{_growth(now.stream_bytes_per_day)}")
    parts.append(f"spool {written.size(now.spool_bytes)}{_growth(now.spool_bytes_per_day)}")
    free, days = now.table_disk_free_bytes, now.days_until_full_estimated
    parts.append("free unknown" if free is None else f"free {written.size(free)}")
    return "  ".join(parts) + (f", full in {min(days, 99_999):,.0f} days" if days is not None else "")


def _growth(per_day: float | None) -> str:
    return f" +{written.size(per_day)}/day" if per_day and per_day > 0 else ""


def _figures(status: Status) -> Text:
    text = Text(figures(status))
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
    """Closes as bars between the lowest low and the highest high; green where a candle rose, red where it fell."""
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
    """How long ago a tick came: with a decimal while it is new."""
    return f"{max(seconds, 0):.1f} s" if seconds < 100 else written.span(seconds)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"
