"""The plan of a backfill: the minutes that it requests and the number of calls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickpipe.backfill.plan import Call, Gap, moment, plan
from tickpipe.backfill.rest import Bar, RefusedSymbolError
from tickpipe.backfill.run import BackfillResult, run
from tickpipe.ranges import Range

START = 29_000_000  # minutes since 1970
BASE = moment(START)
NOW = BASE + timedelta(days=30)

seconds = st.integers(0, 40 * 60)
ranges = st.lists(
    st.builds(lambda first, length: Range(START + first, START + first + length), st.integers(0, 40), st.integers(0, 8))
)


@st.composite
def gaps(draw: st.DrawFn) -> list[Gap]:
    """Gaps of two symbols within 40 minutes, in seconds. Some overlap, some are empty."""
    moments = st.tuples(seconds, st.one_of(st.just(0), st.integers(1, 600)))
    return [
        Gap(symbol, None, BASE + timedelta(seconds=since), BASE + timedelta(seconds=since + length))
        for symbol, (since, length) in draw(st.lists(st.tuples(st.sampled_from("AB"), moments), max_size=8))
    ]


def each(ranges: Sequence[Range]) -> list[int]:
    return [minute for first, last in ranges for minute in range(first, last + 1)]


def fewest(minutes: Sequence[int], reach: int) -> int:
    """The fewest intervals of `reach` minutes that cover these minutes, by trying all of them."""

    @cache
    def from_here(index: int) -> int:
        if index == len(minutes):
            return 0
        fits = [last for last in range(index, len(minutes)) if minutes[last] - minutes[index] < reach]
        return 1 + min(from_here(last + 1) for last in fits)

    return from_here(0)


@given(gaps(), ranges, st.integers(0, 40 * 60), st.integers(0, 60 * 60))
def test_plan_requests_exactly_the_minutes_that_gaps_touch(
    gaps: list[Gap], done: list[Range], since: int, now: int
) -> None:
    begin, end = BASE + timedelta(seconds=since), BASE + timedelta(seconds=now)
    with mock.patch("tickpipe.backfill.plan.MAX_BARS", 7):
        calls = list(plan(gaps, {"A": done}, begin, end))
    for symbol in "AB":
        touched = {
            minute
            for minute in range(START, START + 60)
            for gap in gaps
            if gap.symbol == symbol
            and (gap.since < moment(minute + 1) and max(gap.since, begin) < moment(minute + 1))
            and (gap.until > max(moment(minute), begin) or gap.since == gap.until >= max(moment(minute), begin))
        }
        ended = {minute for minute in touched if moment(minute + 2) <= end}
        wanted = sorted(ended - set(each(done) if symbol == "A" else []))
        asked = [call.wanted for call in calls if call.symbol == symbol]
        assert each([part for parts in asked for part in parts]) == wanted
        assert all(parts[-1].last - parts[0].first < 7 for parts in asked)
        assert len(asked) == fewest(wanted, 7)


def test_long_gap_is_split_into_the_calls_its_bars_need() -> None:
    gap = Gap("A", "NYSE", BASE + timedelta(seconds=30), BASE + timedelta(minutes=12_000, seconds=30))
    calls = list(plan([gap], {}, BASE, NOW))
    assert [call.wanted for call in calls] == [
        (Range(START, START + 4_999),),
        (Range(START + 5_000, START + 9_999),),
        (Range(START + 10_000, START + 12_000),),
    ]
    assert (calls[0].exchange, calls[0].since, calls[0].until) == ("NYSE", BASE, moment(START + 5_000))


def test_neighbouring_gaps_share_a_call() -> None:
    near = [Gap("A", None, moment(START + at), moment(START + at + 1)) for at in (0, 100, 4_999)]
    (call,) = plan(near, {}, BASE, NOW)
    assert call.wanted == tuple(Range(START + at, START + at) for at in (0, 100, 4_999))


def test_refused_symbol_is_reported_and_not_requested_again(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = (Gap(symbol, None, BASE, BASE + timedelta(minutes=6_000)) for symbol in ("BAD", "GOOD"))
    calls = list(plan([bad, good], {}, BASE, NOW))
    asked: list[str] = []
    reported: list[tuple[int, int, str]] = []

    def ask(call: Call) -> list[Bar]:
        asked.append(call.symbol)
        if call.symbol == "BAD":
            raise RefusedSymbolError("not found")
        return [Bar(call.since, 1, 1, 1, 1, None)]

    result = BackfillResult()
    run(calls, ask, lambda _, bars: len(bars), result, lambda *report: reported.append(report))
    assert asked == ["BAD", "GOOD", "GOOD"]
    assert (result.refused, str(result)) == ({"BAD": "not found"}, "stored 2 bars of 1 symbol in 1 gap")
    assert [done_and_total for *done_and_total, _ in reported] == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert [description for *_, description in reported][::2] == [
        "filling gaps of 2 symbols, now BAD",
        "filling gaps of 2 symbols, now GOOD",
    ]
    assert "backfill: symbol refused: BAD: not found" in caplog.text
