"""Numbers as log lines and messages write them. Pure."""

from __future__ import annotations

import re


def counted(number: int, noun: str) -> str:
    """A number and its noun: `1 entry`, `2 entries`, `0 batches`."""
    if number != 1:
        noun = re.sub("([^aeiou])y$", r"\1ie", noun)
        noun += "es" if noun.endswith(("ch", "s", "x")) else "s"
    return f"{number} {noun}"
