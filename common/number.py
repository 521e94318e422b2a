"""Spellings of numbers that a stream entry may have. Pure.

PostgreSQL accepts more spellings, and newer versions more than older ones: `0x1A`, `1_000`, ` 12 `, `Infinity`. Entries
with one of those become dead letters. The database may still reject a number as out of range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

#: The bytes of valid numbers. PostgreSQL accepts no other text of these bytes than the functions below.
INTEGER_BYTES = b"-0123456789"
DECIMAL_BYTES = b"+-.0123456789Ee"

_INTEGER = re.compile("-?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[Ee][+-]?[0-9]+)?")


def has_only(allowed: bytes, values: Sequence[bytes]) -> bool:
    """Whether the values have these bytes only."""
    return not b"".join(values).translate(None, allowed)


def is_bigint(text: str) -> bool:
    """Whether this is a 64-bit integer."""
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
