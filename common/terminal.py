"""Escapes control characters in all text for a terminal or a log.

Symbols, exchanges, consumer names and servers' messages come from outside. A terminal would obey escape sequences in
them, and right-to-left marks would reorder the text around them.
"""

from __future__ import annotations

import json
import re
from typing import Any

import typer
from rich.console import Console

#: C0, DEL and C1 control characters; marks that set the direction of text; line separators; lone surrogates.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_BUT_NEWLINE = re.compile(rf"(?!\n){_CONTROL.pattern}")


def printable(text: object) -> str:
    r"""The text as one line, each control character as Python writes it: \x1b, \n, \u202e."""
    return _CONTROL.sub(_escaped, str(text))


def printable_lines(text: object) -> str:
    """As `printable`, but line ends stay."""
    return _CONTROL_BUT_NEWLINE.sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def echo(*lines: object, err: bool = False) -> None:
    """Print each of these as one line, to stdout or stderr."""
    for line in lines:
        typer.echo(printable(line), err=err)


def echo_json(value: object, **options: Any) -> None:
    """Print a value as JSON in ASCII. (`json` itself leaves DEL as it is.)"""
    typer.echo(json.dumps(value, indent=1, **options).replace("\x7f", "\\u007f"))


class PlainConsole(Console):
    """A console of rich whose strings are text alone: no markup, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print. rich renders the objects that are not strings."""
        super().print(*(printable_lines(each) if isinstance(each, str) else each for each in objects), **options)
