"""The consumers of a group over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from common.streams.group import IDLE_AFTER, Member
from tickpipe.inspect.rates import Rate
from tickpipe.inspect.snapshot import Consumer

#: Seconds for which a consumer that disappeared without leaving is still listed.
GONE_SHOWN = 15.0


class ConsumerTracker:
    """Tells consumers that left on purpose from those that disappeared, and measures the rate of each."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}
        self._last: dict[str, Consumer] = {}
        self._gone: dict[str, tuple[float, Consumer]] = {}

    def update(self, now: float, members: Sequence[Member], stored: Mapping[str, int]) -> list[Consumer]:
        """The consumers at `now` (seconds), by name. `stored`: rows that each consumer reports."""
        present = {}
        for member in members:
            rate = self._rates.setdefault(member.name, Rate()).update(now, stored.get(member.name, 0))
            state: Literal["active", "idle"] = "idle" if member.idle > IDLE_AFTER else "active"
            present[member.name] = Consumer(*member, rate, state)
        for name in self._last.keys() - present.keys():
            del self._rates[name]
            if (last := self._last[name]).state == "idle":  # an active one has left by itself
                self._gone[name] = (now, last._replace(state="gone", pending=0, rate=0.0))
        self._last = present
        self._gone = {
            name: (since, consumer)
            for name, (since, consumer) in self._gone.items()
            if name not in present and since > now - GONE_SHOWN
        }
        return sorted([*present.values(), *(consumer for _, consumer in self._gone.values())])
