"""What a run consists of: steps, one after the other, each a preparation or one round of one case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.report import Sample


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured. `rounds` of each case alternate."""

    events: int = 200_000
    rounds: int = 3
    feed_events: int = 200_000
    feed_rounds: int = 2
    #: Events a second, and for how many seconds of them (the first WARM_UP of them do not count).
    paces: tuple[int, ...] = (100, 1_000, 5_000)
    pace_seconds: int = 15
    pace_rounds: int = 2
    #: Rows in the table before a drain.
    sizes: tuple[int, ...] = (1_000_000, 10_000_000)
    growth_rounds: int = 2
    backlog: int = 2_000_000
    dashboard_rounds: int = 5


QUICK = Scale(
    events=50_000, rounds=1, feed_events=50_000, feed_rounds=1, pace_seconds=5, pace_rounds=1, sizes=(500_000,),
    growth_rounds=1, backlog=200_000, dashboard_rounds=1,
)  # fmt: skip


class Case(NamedTuple):
    """One case to do a part's work. `run(round)` measures it once and gives its sample, after some `seconds`."""

    name: str
    seconds: float
    run: Callable[[int], Sample]


class Preparation(NamedTuple):
    """What must be done before the rounds; nothing of it is measured."""

    name: str
    seconds: float
    run: Callable[[], object]


class Part(NamedTuple):
    """A part of the run: preparations, then rounds of all its cases."""

    name: str
    rounds: int
    preparations: Sequence[Preparation]
    cases: Sequence[Case]


def turns(cases: Sequence[Case], rounds: int) -> list[tuple[int, Case]]:
    """Each case once a round, every other round backwards: nobody always comes first, or after the same other one."""
    return [(number, case) for number in range(rounds) for case in (cases if number % 2 == 0 else cases[::-1])]
