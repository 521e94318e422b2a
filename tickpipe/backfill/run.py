"""Makes the calls of a plan."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.formatting import counted
from tickpipe.backfill.plan import Call
from tickpipe.backfill.rest import Bar, RefusedSymbolError
from tickpipe.ranges import Range, merged

logger = logging.getLogger("tickpipe.backfill")


@dataclass
class BackfillResult:
    """Results so far, by symbol: new bars, minutes that were requested, and the reasons of refusals."""

    bars: Counter[str] = field(default_factory=Counter)
    answered: defaultdict[str, list[Range]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        gaps = sum(len(merged(ranges)) for ranges in self.answered.values())
        symbols = counted(len(+self.bars), "symbol")
        return f"stored {counted(self.bars.total(), 'bar')} of {symbols} in {counted(gaps, 'gap')}"


def run(
    calls: Sequence[Call],
    request: Callable[[Call], Sequence[Bar]],
    keep: Callable[[Call, Sequence[Bar]], int],
    result: BackfillResult,
    progress: Callable[[int, int, str], object],
) -> None:
    """Make the calls, one after the other, and add to `result`. Raises what `request` and `keep` raise.

    Requests nothing more of a symbol that was refused. `progress` takes the calls done, all calls and a description.
    """
    symbols = counted(len({call.symbol for call in calls}), "symbol")
    for number, call in enumerate(calls):
        progress(number, len(calls), f"filling gaps of {symbols}, now {call.symbol}")
        if call.symbol in result.refused:
            continue
        try:
            result.bars[call.symbol] += keep(call, request(call))
            result.answered[call.symbol] += call.wanted
        except RefusedSymbolError as error:
            result.refused[call.symbol] = str(error)
            logger.warning("backfill: symbol refused: %s: %s", call.symbol, error)
