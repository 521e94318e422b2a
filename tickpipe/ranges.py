"""Ranges of numbers: union and difference."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

logger = logging.getLogger("tickpipe.verify")


class Range(NamedTuple):
    """Numbers from `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1


def merged(ranges: Sequence[Range]) -> list[Range]:
    """The same numbers in as few ranges as can be, in order."""
    result: list[Range] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1].last + 1:
            result[-1] = Range(result[-1].first, max(result[-1].last, last))
        else:
            result.append(Range(first, last))
    return result


def without(ranges: Sequence[Range], taken: Sequence[Range]) -> tuple[list[Range], int]:
    """The numbers of `ranges` that are not in `taken`, and how many were."""
    left: list[Range] = []
    cuts = deque(merged(taken))
    for first, last in merged(ranges):
        start = first
        while cuts and cuts[0].first <= last:
            if cuts[0].first > start:
                left.append(Range(start, cuts[0].first - 1))
            start = max(start, cuts[0].last + 1)
            if cuts[0].last > last:
                break  # it reaches into the next range
            cuts.popleft()
        if start <= last:
            left.append(Range(start, last))
    return left, sum(map(len, merged(ranges))) - sum(map(len, left))
