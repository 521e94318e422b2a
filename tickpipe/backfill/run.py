"""Makes the calls of a plan."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tickpipe.backfill.plan import Call, Span, minus
from tickpipe.backfill.rest import Bar, RefusedSymbolError

logger = logging.getLogger("tickpipe.backfill")


@dataclass
class BackfillResult:
    """What has come of it so far, by symbol: bars stored, spans that were answered for, why nothing was given."""

    bars: Counter[str] = field(default_factory=Counter)
    answered: defaultdict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        gaps = sum(len(minus(spans)) for spans in self.answered.values())
        return f"{self.bars.total():,} bars of {len(+self.bars)} symbols stored over {gaps} gaps"


def run(
    calls: Sequence[Call],
    ask: Callable[[Call], Sequence[Bar]],
    keep: Callable[[Call, Sequence[Bar]], int],
    tally: BackfillResult,
    progress: Callable[[int, int], object],
) -> None:
    """Make the calls, each after the answer of the one before is kept; counts in `tally`. Raises what these raise.

    A symbol that is refused is named, and not asked for again. `progress` is told the symbols and the calls left.
    """
    for number, call in enumerate(calls):
        progress(len({each.symbol for each in calls[number:]}), len(calls) - number)
        if call.symbol in tally.refused:
            continue
        try:
            tally.bars[call.symbol] += keep(call, ask(call))
            tally.answered[call.symbol] += call.wanted
        except RefusedSymbolError as error:
            tally.refused[call.symbol] = str(error)
            logger.warning("no bars of %s: %s", call.symbol, error)
