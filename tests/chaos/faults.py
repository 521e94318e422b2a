"""The faults of a chaos run and their seeded schedule."""

from __future__ import annotations

import random
from typing import NamedTuple

#: Fault → (relative frequency; minimum and maximum duration in seconds).
FAULTS = {
    "kill a consumer": (5, 0.0, 1.5),
    "pause a consumer": (2, 4.0, 6.0),  # longer than the claim time
    "kill the producer": (2, 0.2, 1.5),
    "pause the producer": (1, 0.5, 2.0),
    "kill Redis": (2, 0.2, 3.0),
    "pause Redis": (1, 0.5, 2.0),
    "fill Redis": (1, 2.0, 4.0),
    "kill PostgreSQL": (2, 0.2, 3.0),
    "stop PostgreSQL": (1, 0.2, 2.0),
    "kill a consumer with a batch, PostgreSQL": (
        2,
        1.0,
        2.0,
    ),  # the consumer has a batch because the database is unavailable
    "close the websocket": (2, 0.0, 0.0),
    "reset the websocket": (2, 0.0, 0.0),
    "half-open the websocket": (1, 0.0, 0.0),
    "hang handshakes": (1, 3.0, 6.0),
    "mute the feed": (1, 1.0, 3.0),
    "send garbage": (1, 0.0, 0.0),
    "a slow second group": (1, 2.0, 6.0),
}
#: Seconds between two faults. Faults may overlap.
BETWEEN = (0.5, 3.0)
#: Seconds at the start without any fault.
QUIET_START = 3.0


class Step(NamedTuple):
    """A fault, from `at` to `until`, in seconds since the start."""

    at: float
    until: float
    fault: str


def schedule(seed: int, seconds: float) -> list[Step]:
    """The faults of a run in order. A seed always gives the same faults; each kind occurs at least once."""
    rng = random.Random(seed)
    first = rng.sample(list(FAULTS), len(FAULTS))
    weights = [often for often, _, _ in FAULTS.values()]
    steps: list[Step] = []
    at = QUIET_START
    busy: dict[str, float] = {}  # end of the current fault of each part: a part has one fault at a time
    while at < seconds:
        fault = first.pop() if first else rng.choices(list(FAULTS), weights)[0]
        _, shortest, longest = FAULTS[fault]
        part = fault.split()[-1]
        begin = max(at, busy.get(part, 0.0))
        end = begin + rng.uniform(shortest, longest)
        busy[part] = end + 0.2
        steps.append(Step(begin, end, fault))
        at += rng.uniform(*BETWEEN)
    return sorted(steps)
