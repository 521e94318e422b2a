"""A file of the messages that an exchange sent in a session."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import ConfigurationError
from tickpipe.simulator.trades import Trade

#: A message: the time in seconds since 1970, and the text. Other lines are addresses and messages of the client.
_MESSAGE = re.compile(r"([0-9]+(?:\.[0-9]+)?): (.+)")


class RecordedMessage(NamedTuple):
    """A message, its time in seconds since 1970, and its trades."""

    at: float
    text: str
    trades: Sequence[Trade]


class Recording:
    """Messages of an exchange in order, and the trades in those that were played so far (see Tape)."""

    def __init__(self, path: Path, parse: Callable[[str], Sequence[Trade]]) -> None:
        """`parse` gives the trades in a message. Raises ConfigurationError for a file without a message."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigurationError(f"cannot read the recording {path}: {reason}") from None
        found = [match for match in map(_MESSAGE.fullmatch, lines) if match]
        if not found:
            raise ConfigurationError(f"the recording {path} has no message. Expected lines TIME: MESSAGE")
        self.messages = [RecordedMessage(float(match[1]), match[2], parse(match[2])) for match in found]
        self._trades: dict[str, list[Trade]] = {}
        for trade in (trade for message in self.messages for trade in message.trades):
            self._trades.setdefault(trade.name, []).append(trade)
        for trades in self._trades.values():
            trades.sort(key=_number)
        self._last = {name: trades[0].number - 1 for name, trades in self._trades.items()}

    def play(self, message: RecordedMessage) -> None:
        """The exchange has now sent this message: its trades have been made."""
        for trade in message.trades:
            self._last[trade.name] = max(self._last[trade.name], trade.number)

    @property
    def names(self) -> Collection[str]:
        """See Tape."""
        return self._trades

    def last(self, name: str) -> int:
        """See Tape."""
        return self._last[name]

    def trades(self, name: str, first: int, last: int) -> Sequence[Trade]:
        """See Tape."""
        trades = self._trades[name]
        begin = bisect_left(trades, first, key=_number)
        return trades[begin : bisect_right(trades, min(last, self._last[name]), key=_number)]

    def after(self, name: str, at: int) -> int:
        """See Tape."""
        later = (trade.number for trade in self._trades[name] if trade.at > at)
        return min(later, default=self._trades[name][-1].number + 1)


def _number(trade: Trade) -> int:
    return trade.number
