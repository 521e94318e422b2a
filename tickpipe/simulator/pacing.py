"""When to send which price: at a steady rate on each connection, or as recorded in a capture."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from websockets.exceptions import ConnectionClosed

from tickpipe.simulator.connection import Connection
from tickpipe.simulator.random_walk import Event, EventSource

#: Seconds between two checks of the clock while prices are due.
SLICE = 0.005
#: Seconds between two checks for subscribers while a replay is paused.
POLL = 0.02
#: Seconds that a random walk may fall behind its rate. Older prices are skipped, since stale prices have no use.
MAX_DEBT = 1.0
#: Events sent in a row before other tasks run: `send` never yields to them if a client reads fast enough.
BURST = 64


#: Sends an event, given also as JSON. Returns when the client has room for the next. Raises ConnectionClosed.
Send = Callable[[Connection, Event, str], Awaitable[None]]


async def pace(
    connection: Connection,
    source: EventSource,
    rate: float,
    *,
    clock: Callable[[], float],
    is_listening: Callable[[Connection], bool],
    send: Send,
) -> None:
    """Send `rate` events per second, one symbol after the other, until nothing is subscribed.

    Sending follows deadlines, so a late wake-up is made up for. An event is created only when it can be sent.
    """
    loop = asyncio.get_running_loop()
    interval = 1 / rate
    due = loop.time() + interval
    while connection.symbols and connection.is_open:
        now = loop.time()
        due = max(due, now - MAX_DEBT)
        owed = max(0, math.floor((now - due) / interval) + 1)
        due += owed * interval
        for count in range(1, owed + 1):
            if not is_listening(connection):
                break
            symbol, exchange = next(iter(connection.symbols.items()))
            connection.symbols.move_to_end(symbol)
            event = source.event(symbol, exchange, clock())
            await send(connection, event, json.dumps(event))
            if count % BURST == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(max(SLICE, due - loop.time()))


class Playback:
    """The clock of a replay. `first` is the time of the first event in seconds, `speed` 0 is as fast as possible.

    Time passes only while a connection is listening.
    """

    def __init__(self, first: float, speed: float, is_listening: Callable[[], object]) -> None:
        self._first, self._speed, self._is_listening = first, speed, is_listening
        self._played = 0.0  # seconds during which a connection was listening
        self._checked_at = asyncio.get_running_loop().time()

    async def until(self, at: float) -> None:
        """Wait for the time of an event, and for a listening connection."""
        loop = asyncio.get_running_loop()
        due = (at - self._first) / self._speed if self._speed else 0.0
        while True:
            now = loop.time()
            has_listeners = self._is_listening()
            self._played += now - self._checked_at if has_listeners else 0.0
            self._checked_at = now
            if has_listeners and self._played >= due:
                return
            await asyncio.sleep(min(POLL, due - self._played) if has_listeners else POLL)


class Recorded(Protocol):
    """Recorded price events of some instruments."""

    @property
    def lines(self) -> Iterable[tuple[float, Event]]:
        """The events in order, each with its time in seconds."""
        ...

    def instrument(self, symbol: str) -> Event | None:
        """The instrument of a symbol; None for a symbol without events."""
        ...


async def replay(prices: Recorded, speed: float, *, listeners: Callable[[], Sequence[Connection]], send: Send) -> None:
    """Send each event at its time to every connection that subscribed to its symbol.

    The slowest connection sets the pace.
    """
    playback: Playback | None = None
    for count, (at, event) in enumerate(prices.lines):
        playback = playback or Playback(at, speed, listeners)
        await playback.until(at)
        text = json.dumps(event)
        for connection in listeners():
            if event["symbol"] in connection.symbols:
                with suppress(ConnectionClosed):
                    await send(connection, event, text)
        if count % BURST == 0:
            await asyncio.sleep(0)
