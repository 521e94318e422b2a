"""When to send which price: at a steady rate on each connection, or as recorded in a capture."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from websockets.exceptions import ConnectionClosed

from tickpipe.simulator.capture import Capture
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


async def replay(capture: Capture, speed: float, *, listeners: Callable[[], Sequence[Connection]], send: Send) -> None:
    """Send each event at its time to every connection that subscribed to its symbol.

    The slowest connection sets the pace. Time passes only while a connection is listening.
    """
    loop = asyncio.get_running_loop()
    first = capture.lines[0][0]
    played = 0.0  # seconds during which a connection was listening
    checked_at = loop.time()
    for count, (at, event) in enumerate(capture.lines):
        due = (at - first) / speed if speed else 0.0
        while True:
            now = loop.time()
            has_listeners = bool(listeners())
            played += now - checked_at if has_listeners else 0.0
            checked_at = now
            if has_listeners and played >= due:
                break
            await asyncio.sleep(min(POLL, due - played) if has_listeners else POLL)
        text = json.dumps(event)
        for connection in listeners():
            if event["symbol"] in connection.symbols:
                with suppress(ConnectionClosed):
                    await send(connection, event, text)
        if count % BURST == 0:
            await asyncio.sleep(0)
