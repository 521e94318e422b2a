"""Reads symbols from options and files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from common.channels import Shard
from common.errors import ConfigurationError
from common.formatting import counted
from common.plain_text import read_text, refuse_invisible, shown, unquoted


def read_symbols(options: Sequence[str], file: Path | None) -> list[str]:
    """The symbols in the options and in the file, in their order, in upper case, without duplicates.

    Commas, blanks and line ends separate symbols; a symbol may be in quotes. In the file, `#` begins a comment.
    Raises ConfigurationError if the file cannot be read, if a symbol has an invisible character, or without any symbol.
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
        raise ConfigurationError("no symbols: give at least one, for example --symbols BTC/USD,AAPL (or set SYMBOLS)")
    return list(dict.fromkeys(found))


def own_symbols(symbols: Sequence[str], shard: Shard, limit: int) -> list[str]:
    """The symbols of this shard. Raises ConfigurationError if there is none.

    `limit`: number of symbols that the vendor's plan allows on one connection, 0: any. More are an error, too.
    """
    own = shard.own(symbols)
    if not own:
        raise ConfigurationError(f"--shard {shard} has none of the {counted(len(symbols), 'symbol')}: use fewer shards")
    if limit and len(own) > limit:
        raise ConfigurationError(
            f"{counted(len(own), 'symbol')} for one connection, but --max-symbols-per-connection is {limit}: divide "
            f"them among more producers (--shard 1/{2 * -(-len(symbols) // limit)}, and so on), or raise the limit if "
            "your plan allows it"
        )
    return own
