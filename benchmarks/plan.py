"""Parts, cases and rounds of a benchmark run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.report import Sample


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Amount of work in each part. Cases alternate within the `rounds`."""

    events: int = 200_000
    rounds: int = 3
    feed_events: int = 200_000
    feed_rounds: int = 2
    #: Events per second, and the seconds at each rate, including WARM_UP.
    paces: tuple[int, ...] = (100, 1_000, 5_000)
    pace_seconds: int = 15
    pace_rounds: int = 2
    #: Rows in the table before each drain.
    sizes: tuple[int, ...] = (1_000_000, 10_000_000)
    growth_rounds: int = 2
    backlog: int = 2_000_000
    dashboard_rounds: int = 5
    #: Appends in each run of the part `append`, at most.
    appends: int = 400
    append_rounds: int = 5
    year_rounds: int = 3
    channel_events: int = 200_000
    channel_rounds: int = 2
    #: Ticks that are read into pandas.
    reads: int = 1_000_000
    reading_rounds: int = 3


QUICK = Scale(
    events=50_000, rounds=1, feed_events=50_000, feed_rounds=1, pace_seconds=5, pace_rounds=1, sizes=(500_000,),
    growth_rounds=1, backlog=200_000, dashboard_rounds=1, append_rounds=1, year_rounds=1,
    channel_events=40_000, channel_rounds=1, reading_rounds=2,
)  # fmt: skip


class Case(NamedTuple):
    """One variant of a part. `run(round)` measures it once. `seconds`: expected duration, for the progress bar."""

    name: str
    seconds: float
    run: Callable[[int], Sample]


class Preparation(NamedTuple):
    """Work before the rounds that is not measured."""

    name: str
    seconds: float
    run: Callable[[], object]


class Part(NamedTuple):
    """A part of a run: preparations, then rounds of all cases."""

    name: str
    rounds: int
    preparations: Sequence[Preparation]
    cases: Sequence[Case]


def turns(cases: Sequence[Case], rounds: int) -> list[tuple[int, Case]]:
    """Each case once per round. Every second round is reversed, so that no case always follows the same one."""
    return [(number, case) for number in range(rounds) for case in (cases if number % 2 == 0 else cases[::-1])]
