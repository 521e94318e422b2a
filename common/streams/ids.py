"""Ids of stream entries as two numbers, for comparison: as text, 9-0 would come after 10-0. Pure."""

from __future__ import annotations

#: Milliseconds since 1970, and a number within them.
Id = tuple[int, int]


def read_id(text: bytes) -> Id:
    """The id in this text."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def id_text(value: Id) -> bytes:
    """The id as Redis writes it."""
    return b"%d-%d" % value


def id_before(value: Id) -> Id:
    """The largest id that is smaller."""
    milliseconds, number = value
    return (milliseconds, number - 1) if number else (milliseconds - 1, (1 << 64) - 1)
