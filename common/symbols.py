"""Reads the symbols in options and files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigurationError
from common.plain_text import read_text, refuse_invisible, shown, unquoted


def read_symbols(options: Sequence[str], file: Path | None) -> list[str]:
    """The symbols in the options and the file (`#` begins a comment), in order, upper case, each once.

    Commas, blanks and line ends separate them; a symbol may be in quotes. Raises ConfigurationError if the list
    is empty, the file cannot be read, or a symbol has an invisible character.
    """
    texts = [("--symbols (or SYMBOLS)", option) for option in options]
    if file:
        title = f"--symbols-file {shown(str(file))}"
        lines = re.split(r"\r\n|\r|\n", read_text(file, title))
        texts += [(f"{title}, line {n}", line.partition("#")[0]) for n, line in enumerate(lines, 1)]
    found = []
    for place, text in texts:
        for part in filter(None, map(unquoted, re.split(r"[, \t\r\n]+", text))):
            refuse_invisible(part, f"{place}: the symbol {part!a}")
            found.append(part.upper())
    if not found:
        raise ConfigurationError("no symbols: name some, as in --symbols BTC/USD,AAPL (or set SYMBOLS)")
    return list(dict.fromkeys(found))
