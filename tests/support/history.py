"""Hours of simulated prices with a gap, stored as if a producer and consumers had run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from common import tick
from common.database.client import DatabaseClient
from common.tick import Tick
from consumer.tables import PRICES
from consumer.writer import Writer
from tests.support.sessions import StoredSession, entry
from tickpipe.simulator.random_walk import EventSource

#: Rows stored in one transaction.
BATCH = 1000


def store_history(
    store: DatabaseClient,
    source: EventSource,
    symbols: Sequence[str],
    *,
    now: float,
    seconds: float,
    every: float = 4.0,
    blind: tuple[float, float] = (0.0, 0.0),
) -> int:
    """Store `seconds` of prices up to `now` (since 1970), one of each symbol every `every` seconds. Returns the count.

    `blind`: start and end of the lost connection, in seconds before `now`.
    """
    session = StoredSession(store, now - seconds)
    lost, found = seconds - blind[0], seconds - blind[1]
    session.emit("started", 0, feed="twelvedata", host="here", symbols=list(symbols))
    session.emit("connected", 0.1)
    session.emit("subscribed", 0.2, symbols=list(symbols))
    if lost < found:
        session.emit(
            "disconnected", lost + 1, cause="no answer to pings", last_frame=round((session.start + lost) * 1e6)
        )
        session.emit("connected", found - 0.2)
        session.emit("subscribed", found, symbols=list(symbols))
    ticks = list(_ticks(session, source, symbols, seconds, every, (lost, found)))
    for first in range(0, len(ticks), BATCH):
        batch = [entry(tick.encode(one)) for one in ticks[first : first + BATCH]]
        Writer(store).insert_batch(PRICES, "prices", batch)
    span = {"time_min": int(session.start), "time_max": int(now)}
    session.emit("stopped", seconds, last_seq=len(ticks), **span)
    return len(ticks)


def _ticks(
    session: StoredSession,
    source: EventSource,
    symbols: Sequence[str],
    seconds: float,
    every: float,
    blind: tuple[float, float],
) -> Iterator[Tick]:
    seq = 0
    for step in range(int(seconds / every)):
        for number, symbol in enumerate(symbols):
            after = (step + number / len(symbols)) * every
            at = session.start + after
            event: dict[str, Any] = source.event(symbol, None, at)
            if blind[0] <= after < blind[1]:
                continue
            seq += 1
            named = {
                **event,
                "session": session.id,
                "seq": seq,
                "time": event["timestamp"],
                "received": round(at * 1e6),
            }
            yield Tick._make(str(named.get(name, "")) for name in Tick._fields)
