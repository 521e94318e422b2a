"""Foreign text on a terminal and in a log: control characters are made visible, never sent."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from common import log
from common.terminal import PlainConsole, echo, echo_json, printable, printable_lines
from tickpipe.dashboard import fragments
from tickpipe.inspect.snapshot import Candle, Snapshot, SymbolStatus
from tickpipe.inspect.verdict import Verdict
from tickpipe.terminal import live_view

ROOT = Path(__file__).parents[2]
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
NASTY = "\x1b]0;owned\x07\x1b[2J\r\n\x7f\x9b31m\u202eABC[red]x[/bold] :smile:<b>"


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} or each in BIDI for each in text)


@given(st.text(st.characters()))
def test_control_characters_are_escaped_and_other_text_is_kept(text: str) -> None:
    assert is_harmless(printable(text))
    assert is_harmless(printable_lines(text).replace("\n", ""))
    if is_harmless(text):
        assert printable(text) == printable_lines(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("a\tb\r\n", r"a\tb\r\n"),
        ("\x7f\x80\x9f", r"\x7f\x80\x9f"),
        ("\u202eABC\u2066", r"\u202eABC\u2066"),
        ("\ud800", r"\ud800"),
        ("日経225 🚀 e\u0301 ﬃ", "日経225 🚀 e\u0301 ﬃ"),
    ],
)
def test_control_characters_are_shown_as_python_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_break_in_a_value_does_not_start_a_new_line(capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"one {NASTY}", "two")
    echo("three\x1b", err=True)
    printed = capsys.readouterr()
    assert [is_harmless(line) for line in printed.out.split("\n")] == [True] * 3
    assert printed.out.endswith("\ntwo\n")
    assert printed.err == "three\\x1b\n"


@given(st.text(st.characters()))
def test_json_output_is_valid_ascii(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout := io.StringIO())
        echo_json([text])
    assert stdout.getvalue().isascii()
    assert is_harmless(stdout.getvalue().replace("\n", ""))
    assert json.loads(stdout.getvalue()) == [text]


def test_a_log_line_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        log.configure("INFO")
        logging.getLogger("test").warning("refused by the server: %s", NASTY)
    finally:
        logging.getLogger().handlers.clear()
    line, end = capsys.readouterr().err.split("\n")
    assert (is_harmless(line), end) == (True, "")
    assert r"refused by the server: \x1b]0;owned\x07" in line


def test_a_traceback_in_the_log_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        log.configure("INFO")
        try:
            raise ValueError(NASTY)
        except ValueError:
            logging.getLogger("test").exception("failed")
    finally:
        logging.getLogger().handlers.clear()
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) > 3
    assert all(map(is_harmless, lines))


def snapshot() -> Snapshot:
    symbol = SymbolStatus(NASTY, 1.0, 1.0, [Candle(0.0, 1.0, 1.0, 1.0, 1.0, 1)])
    return Snapshot(symbols=[symbol], redis_error=f"refused: {NASTY}")


@pytest.mark.parametrize("terminal", [False, True])
def test_live_view_escapes_symbols_and_messages(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=200, height=40)
    console.print(live_view.render(snapshot(), title=f"tickpipe {NASTY}", footer=NASTY, width=200, height=40))
    assert all(map(is_harmless, out.getvalue().split("\n")))
    assert out.getvalue().count(r"\x1b]0;owned\x07") == 3
    assert "[red]x[/bold] :smile:" in out.getvalue()
    assert is_harmless(live_view.line(snapshot(), title=NASTY))


def test_console_strings_are_not_parsed_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().print(f"dashboard: {NASTY}", soft_wrap=True)
    printed = capsys.readouterr().out
    assert all(map(is_harmless, printed.split("\n")))
    assert "[red]x[/bold] :smile:" in printed


def test_verdict_lines_are_escaped() -> None:
    verdict = Verdict(1, NASTY, alive=False, stopped=True, idle=0.0, expected=1, stored=1)
    assert is_harmless(str(verdict))


def test_dashboard_html_is_escaped() -> None:
    html = fragments.escaped(NASTY)
    assert is_harmless(html)
    assert "<b>" not in html


def test_only_the_terminal_module_writes_to_the_terminal() -> None:
    """That module escapes control characters, so no command can forget to."""
    writes = re.compile(r"typer\.echo|click\.echo|(?<![.\w])print\(|std(out|err)\.write|(?<!\w)Console\(")
    for package in ("common", "producer", "consumer", "tickpipe"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.name == "terminal.py" or not writes.search(path.read_text(encoding="utf-8")), path
