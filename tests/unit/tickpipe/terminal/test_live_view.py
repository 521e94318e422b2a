"""The live view: every figure is shown, simulated prices are marked, errors are visible."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from common.streams.group import Backlog
from tickpipe.inspect.reader import worst
from tickpipe.inspect.snapshot import Candle, Snapshot, SymbolStatus
from tickpipe.inspect.symbols import MINUTES
from tickpipe.terminal.live_view import candle_line, figures, line, render

CANDLES = [Candle(0.0, 10.0, 12.0, 9.0, 11.5, 40), Candle(60.0, 11.5, 12.5, 11.0, 11.25, 2)]
SNAPSHOT = Snapshot(
    received=1_234_567,
    stored=1_234_000,
    dead_letters=3,
    backlog=Backlog(1_234_567, 600, 500, 64, 2),
    stored_rate=2345.67,
    latency_p50=0.0123,
    latency_p99=1.5,
    symbols=[
        SymbolStatus("BTC/USD", 96_480.12, 0.26, CANDLES),
        SymbolStatus("EUR/USD", 1.05412, 240.0, []),
        SymbolStatus("OIL", -37.63, 7300.0, CANDLES[:1]),
    ],
)
FIGURES = ["received 1,234,567", "stored 1,234,000", "backlog 564", "dead letters 3", "rows/s 2,345.7", "consumers 2"]
FIGURES += ["p50 12 ms", "p99 1500 ms"]


def shown(snapshot: Snapshot, *, title: str = "tickpipe", width: int = 120, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(render(snapshot, title=title, footer="Ctrl-C ends it", width=width, height=height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(text: str) -> str:
    """The text without frames and line ends."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("width", [80, 120, 200])
def test_all_figures_are_shown(width: int) -> None:
    text = words(shown(SNAPSHOT, width=width))
    for figure in [*FIGURES, "Ctrl-C ends it"]:
        assert figure in text
    for symbol in ("BTC/USD 96,480.12 0.3 s 11.5000 12.5000 11.0000 42", "EUR/USD 1.05412 4 min 0", "OIL -37.6300 2 h"):
        assert symbol in text


@pytest.mark.parametrize("width", [80, 90, 100, 130])
def test_realistic_prices_are_not_truncated(width: int) -> None:
    candles = [Candle(0.0, 96_480.00, 96_618.59, 96_466.11, 96_566.33, 60)] * 40
    text = shown(replace(SNAPSHOT, symbols=[SymbolStatus("BTC/USD", 96_566.33, 50_000.0, candles)]), width=width)
    assert "BTC/USD 96,566.33 14 h 96,480.00 96,618.59 96,466.11 2,400" in words(text)
    assert "…" not in text


@pytest.mark.parametrize("width", [50, 60, 73])
def test_narrow_terminal_drops_columns_and_keeps_the_rest_complete(width: int) -> None:
    candles = [Candle(0.0, 96_480.00, 96_618.59, 96_466.11, 96_566.33, 60)] * 40
    text = shown(replace(SNAPSHOT, symbols=[SymbolStatus("BTC/USD", 96_566.33, 50_000.0, candles)]), width=width)
    assert "BTC/USD 96,566.33 14 h 2,400" in words(text)
    assert "…" not in text


def test_plain_line_has_all_figures() -> None:
    text = line(SNAPSHOT, title="tickpipe  SIMULATED prices")
    assert text.startswith("tickpipe  SIMULATED prices  ")
    assert "\n" not in text
    for figure in [*FIGURES, "BTC/USD 96,480.12", "EUR/USD 1.05412", "OIL -37.6300"]:
        assert figure in text


def test_simulated_prices_are_labelled() -> None:
    assert "SIMULATED" in shown(SNAPSHOT, title="tickpipe  SIMULATED prices")
    assert "SIMULATED" not in shown(SNAPSHOT, title="tickpipe  live prices")
    colours = [
        render(SNAPSHOT, title=title, footer="", width=120, height=40).border_style
        for title in ("SIMULATED prices", "live prices")
    ]
    assert colours == ["yellow", "green"]


def test_outage_is_shown_with_the_last_known_figures() -> None:
    failed = replace(SNAPSHOT, database_error="the database: connection refused")
    for text in (words(shown(failed)), line(failed, title="")):
        assert "the database: connection refused" in text
        assert "received 1,234,567" in text
    assert "ERROR" not in line(SNAPSHOT, title="")


def test_note_replaces_the_footer_and_idle_consumers_are_listed() -> None:
    noted = replace(SNAPSHOT, note="there is no stream 'nosuch'", backlog=Backlog(0, 0, 0, 0, 2, 1))
    for text in (words(shown(noted)), line(noted, title="")):
        assert "there is no stream 'nosuch'" in text
        assert "consumers 2 idle 1" in words(text)
    assert "idle" not in line(SNAPSHOT, title="")


def test_unknown_figures_are_not_shown_as_zero_in_the_live_view() -> None:
    nothing = Snapshot()
    assert "waiting for the first price …" in shown(nothing)
    assert "p50 – p99 –" in figures(nothing)
    assert "dead letters" not in figures(nothing)


@pytest.mark.parametrize("height", [14, 24, 40])
def test_hidden_symbols_are_counted(height: int) -> None:
    many = replace(SNAPSHOT, symbols=[SymbolStatus(f"S{n:02}", 1.0, 0.0, []) for n in range(50)])
    text = shown(many, height=height)
    drawn = re.findall(r"S\d\d", text)
    assert drawn == [f"S{n:02}" for n in range(len(drawn))]
    assert len(drawn) >= 1
    assert f"… and {50 - len(drawn)} more symbols" in text
    assert len(text.splitlines()) <= height  # it fits, else the terminal would scroll
    assert "more symbols" not in shown(SNAPSHOT, height=height + 10)


def test_a_candle_line_is_scaled_from_the_lowest_low_to_the_highest_high() -> None:
    text = candle_line([Candle(0, 1, 1, 0, 0, 1), Candle(60, 0, 8, 0, 8, 1), Candle(120, 8, 8, 4, 4, 1)])
    assert text.plain[:2] == "▁█"
    assert text.plain[2] in "▄▅"
    assert [str(span.style) for span in text.spans] == ["red", "green", "red"]


@pytest.mark.parametrize(
    ("candles", "expected"),
    [([], ""), ([Candle(0, 5, 5, 5, 5, 1)] * 3, r"([▄▅])\1\1"), ([Candle(0, -1, -1, -3, -2, 1)], r"[▄▅]")],
    ids=["none", "flat", "negative"],
)
def test_candle_line_handles_few_candles(candles: list[Candle], expected: str) -> None:
    assert re.fullmatch(expected, candle_line(candles).plain)


def test_only_the_newest_candles_are_drawn() -> None:
    rising = [Candle(n, n, n, n, n, 1) for n in range(100)]
    text = shown(replace(SNAPSHOT, symbols=[SymbolStatus("A", 1.0, 0.0, rising)]))
    (bars,) = re.findall(r"[▁▂▃▄▅▆▇█]+", text)
    assert (len(bars), bars[0], bars[-1]) == (MINUTES, "▁", "█")


def test_consumer_report_without_a_figure_is_ignored() -> None:
    assert worst([{"at": 1}, {"at": 1, "latency_p50": None}, {"at": 1, "latency_p50": 0.5}], "latency_p50") == 0.5
    assert worst([{"at": 1}], "latency_p50") is None
