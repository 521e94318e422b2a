"""What `verify` finds of one session."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from common.terminal import printable
from tickpipe.ranges import Range

logger = logging.getLogger("tickpipe.verify")


@dataclass
class Verdict:
    """What was found of one session; counts are of price events.

    `expected`: the last number vouched for. `waiting`: still in spool or stream. `lost`: told as lost in an overflow, a
    recorded gap. `expired`: dropped by retention. `spans`: when each of the first missing ranges was received, by its
    neighbours.
    """

    session: int
    feed: str
    alive: bool
    stopped: bool
    silent: float  # seconds since its last word
    expected: int
    stored: int
    dead_letters: int = 0
    lost: int = 0
    expired: int = 0
    waiting: int = 0
    missing: list[Range] = field(default_factory=list)
    doubled: list[Range] = field(default_factory=list)
    untold: list[Range] = field(default_factory=list)  # numbers of feed events that are missing: a gap may hide there
    spans: list[tuple[datetime | None, datetime | None]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is missing and nothing doubled, of the prices and of what was told of the feed."""
        return not self.missing and not self.doubled and not self.untold

    @property
    def state(self) -> str:
        """One of the four below; of a session that `ended without word`, what came after its last word is a gap."""
        if not self.sound:
            return INCOMPLETE
        if self.alive or self.waiting:
            return SO_FAR
        return COMPLETE if self.stopped else NO_WORD

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "state": self.state, "sound": self.sound}

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """For a person: what was found, then a line for each range of numbers that is missing or doubled."""
        start = datetime.fromtimestamp(self.session / 1e6, UTC)
        words = [f"session {self.session} ({start:%Y-%m-%d %H:%M:%S} UTC, {self.feed}): {self.state},"]
        if self.stored <= self.expected:
            words.append(f"{self.stored:,} of {self.expected:,} stored")
        else:  # the newest have come since the producer's last word
            words.append(f"{self.stored:,} stored, {self.expected:,} vouched for")
        words += [f"+ {self.waiting:,} on their way"] if self.waiting else []
        words += [f"+ {self.dead_letters:,} dead letters"] if self.dead_letters else []
        words += [f"+ {self.lost:,} lost in a recorded overflow"] if self.lost else []
        words += [f"+ {self.expired:,} expired"] if self.expired else []
        lines = [" ".join(words)]
        for missing, (since, until) in zip(self.missing, self.spans, strict=False):
            lines.append(f"  MISSING {missing} ({len(missing):,}), received {_moment(since)} to {_moment(until)}")
        if len(self.missing) > len(self.spans):
            lines.append(f"  MISSING {len(self.missing) - len(self.spans):,} more ranges (--json lists them)")
        lines += [f"  DOUBLED {doubled}" for doubled in self.doubled]
        lines += [f"  FEED EVENT {untold} is missing: a gap may not be on record" for untold in self.untold]
        return [printable(line) for line in lines]


COMPLETE, SO_FAR, NO_WORD, INCOMPLETE = "complete", "complete so far", "ended without word", "incomplete"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC" if at else "the session's edge"
