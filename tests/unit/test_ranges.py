"""Ranges of integers behave as the sets that they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tickpipe.ranges import Range, difference, merged, without

ranges = st.lists(
    st.builds(lambda first, length: Range(first, first + length), st.integers(-20, 40), st.integers(0, 9)), max_size=12
)


def integers(found: Iterable[Range]) -> list[int]:
    return [number for first, last in found for number in range(first, last + 1)]


@given(ranges)
def test_merged_ranges_contain_the_same_integers_in_order_and_do_not_touch(some: list[Range]) -> None:
    found = merged(some)
    assert integers(found) == sorted(set(integers(some)))
    assert all(earlier.last + 1 < later.first for earlier, later in pairwise(found))


@given(ranges, ranges)
def test_the_difference_is_that_of_the_sets_in_order_and_does_not_touch(some: list[Range], others: list[Range]) -> None:
    found = difference(some, others)
    assert integers(found) == sorted(set(integers(some)) - set(integers(others)))
    assert all(earlier.last + 1 < later.first for earlier, later in pairwise(found))


@given(ranges, ranges)
def test_without_also_counts_the_integers_that_were_removed(some: list[Range], others: list[Range]) -> None:
    found, count = without(some, others)
    assert found == difference(some, others)
    assert count == len(set(integers(some)) & set(integers(others)))


def test_a_range_is_printed_as_its_ends_or_as_one_number() -> None:
    assert (str(Range(3, 7)), str(Range(3, 3))) == ("3–7", "3")
    assert (len(Range(3, 7)), len(Range(3, 3))) == (5, 1)
