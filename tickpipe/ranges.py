"""Sets of integers as ranges: sequence numbers of a session, or minutes since 1970. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Range(NamedTuple):
    """The integers from `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same integers in as few ranges as possible, in order."""
    result: list[Range] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1].last + 1:
            result[-1] = Range(result[-1].first, max(result[-1].last, last))
        else:
            result.append(Range(first, last))
    return result


def difference(ranges: Iterable[Range], removed: Iterable[Range]) -> list[Range]:
    """The integers in `ranges` that are not in `removed`, in as few ranges as possible, in order."""
    left: list[Range] = []
    cuts = merged(removed)
    index = 0
    for first, last in merged(ranges):
        start = first
        while index < len(cuts) and cuts[index].first <= last:
            if cuts[index].first > start:
                left.append(Range(start, cuts[index].first - 1))
            start = max(start, cuts[index].last + 1)
            if cuts[index].last > last:
                break  # this cut may reach into the next range
            index += 1
        if start <= last:
            left.append(Range(start, last))
    return left


def without(ranges: Sequence[Range], removed: Iterable[Range]) -> tuple[list[Range], int]:
    """The difference, and how many integers it lacks."""
    left = difference(ranges, removed)
    return left, sum(map(len, merged(ranges))) - sum(map(len, left))
