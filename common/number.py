"""How a number is written in a stream entry, for every path to the database. Pure.

PostgreSQL takes more spellings, and newer versions more than older ones: `0x1A`, `1_000`, ` 12 `, `Infinity`. An entry
with one of those is a dead letter, whatever its neighbours are. The database may still refuse a value that is accepted
here, as out of range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

#: The bytes that values may have: with these alone PostgreSQL accepts nothing that the functions below do not.
INTEGER_BYTES = b"-0123456789"
DECIMAL_BYTES = b"+-.0123456789Ee"

_INTEGER = re.compile("-?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[Ee][+-]?[0-9]+)?")


def has_only(allowed: bytes, values: Sequence[bytes]) -> bool:
    """Whether no value has another byte. It looks at all of them at once."""
    return not b"".join(values).translate(None, allowed)


def is_bigint(text: str) -> bool:
    """Whether this is an integer of 64 bits."""
    if not _INTEGER.fullmatch(text):
        return False
    digits = text.lstrip("-0")
    return len(digits) <= 19 and -(2**63) <= int(f"{'-' if text[0] == '-' else ''}{digits or 0}") < 2**63


def is_finite(text: str) -> bool:
    """Whether this is a decimal number, with or without an exponent, that a double can hold."""
    return bool(_DECIMAL.fullmatch(text)) and math.isfinite(float(text))


def to_bigint(text: bytes | None) -> int | None:
    """The integer, if this is a sequence of at most 18 digits, else None."""
    return int(text) if text and text.isdigit() and len(text) <= 18 else None
