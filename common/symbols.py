"""Reads the symbols a person names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigurationError


def read_symbols(options: Sequence[str], file: Path | None) -> list[str]:
    """The symbols in the options and the file (`#` begins a comment), in order, upper case, each once.

    Commas, blanks and line ends part them. Raises ConfigurationError where there are none, or one that cannot be.
    """
    texts = list(options)
    if file:
        try:
            texts += [line.partition("#")[0] for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"--symbols-file {file} cannot be read: {error}") from None
    found = list(dict.fromkeys(symbol.upper() for text in texts for symbol in re.split(r"[,\s]+", text) if symbol))
    if not found:
        raise ConfigurationError("no symbols: name some, as in --symbols BTC/USD,AAPL (or set SYMBOLS)")
    return found
