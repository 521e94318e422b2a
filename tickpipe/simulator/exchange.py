"""The simulator of an exchange: its websocket, and its REST requests for trades by number, on one port."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tickpipe.simulator import pacing
from tickpipe.simulator.config import ExchangeConfig
from tickpipe.simulator.connection import Connection, json_response
from tickpipe.simulator.local_server import STOP_TIMEOUT, LocalServer
from tickpipe.simulator.misbehaviour import Misbehaviour, Wire
from tickpipe.simulator.recording import Recording
from tickpipe.simulator.rest import Credits
from tickpipe.simulator.trades import Market, Tape, Trade
from tickpipe.simulator.venues import VENUES
from tickpipe.simulator.venues.venue import Reply

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats.
HEARTBEAT = 1.0
#: Seconds that a client has to answer the close frame.
CLOSE_TIMEOUT = 10.0
#: Trades of one symbol that are sent late, at most, for example after the machine has slept. REST has the others.
MAX_LATE = 100_000
#: Bytes in memory for a client that does not read. The server then closes its connection, as exchanges do.
MAX_UNREAD = 16 * 1024 * 1024


class ExchangeSimulator(LocalServer):
    """Serves trades: those of a random market, or of a recorded session.

    A market goes on whether or not a client is connected. A recording is played once, for all connections together: it
    begins with the first subscription, and pauses while no connection has one. `wire` gets each trade before it is
    sent, and replaces the misbehaviour of the settings.
    """

    def __init__(
        self, config: ExchangeConfig, wire: Wire | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(config, clock)
        self._config = config
        self._venue = VENUES[config.feed]
        self.path = self._venue.path
        seed = random.randrange(2**32) if config.seed is None else config.seed  # noqa: S311  prices, not secrets
        rng = random.Random(seed)  # noqa: S311
        self._wire = wire or Misbehaviour(rng, drop=config.drop, repeat=config.repeat, delay=config.delay)
        self._made_at = clock()  # trades were made, and sent, up to this time
        self._last_sent: dict[str, int] = {}
        self.tape: Tape = Market(self._venue.listings(), config.rate, seed, lambda: self._made_at)
        self._recording: Recording | None = None
        self._requests = Credits(config.requests_per_second, period=1)

    # Hooks of the server.

    def _load(self) -> None:
        if self._config.replay:
            self.tape = self._recording = Recording(self._config.replay, self._venue.parse)

    def _begin(self) -> None:
        self._spawn(self._supervise(self._replay(self._recording) if self._recording else self._trade()))
        self._spawn(self._beat())

    async def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        url = urlsplit(request.path)
        if "Upgrade" not in request.headers:
            return json_response(socket, *self._answer(unquote(url.path), dict(parse_qsl(url.query))))
        if self._config.refuse is not None:
            return self._refuse(socket, self._config.refuse)
        if url.path != self.path:
            return socket.respond(HTTPStatus.NOT_FOUND, "Not found.\n")
        return None

    def _answer(self, path: str, params: Mapping[str, str]) -> Reply:
        """The answer to a REST request."""
        limit = self._requests.limit
        if limit is not None and self._requests.spend(self._clock()) > limit:
            return HTTPStatus.TOO_MANY_REQUESTS, self._venue.too_many
        return self._venue.rest(path, params, self.tape) or (HTTPStatus.NOT_FOUND, {"message": "NotFound"})

    def _opened(self, connection: Connection) -> None:
        super()._opened(connection)
        for text in self._venue.greeting():
            self._reply(connection, text)

    def _serving(self, connection: Connection) -> Coroutine[Any, Any, None] | None:
        seconds = self._config.close_after
        return None if seconds is None else self._expire(connection, seconds)

    async def _received(self, connection: Connection, message: str | bytes) -> None:
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            request = None
        if self._recording is None:
            self._send_made()  # the next trade of the client is the one after the newest in the answer
        for text in self._venue.answer(request, connection.subscriptions, self.tape, self._now()):
            self._reply(connection, text)
        if connection.subscriptions.trades:
            self._subscribed(connection)

    async def _expire(self, connection: Connection, seconds: float) -> None:
        notice = min(seconds, self._config.shutdown_notice or 0.0)
        await asyncio.sleep(seconds - notice)
        if notice and (farewell := self._venue.farewell(self._now())):
            self._reply(connection, farewell)
        await asyncio.sleep(notice)
        self._spawn(self._close([connection], 1001, "", CLOSE_TIMEOUT))

    def _reply(self, connection: Connection, text: str) -> None:
        """Send a message without waiting, so that no trade comes between two answers."""
        if self._permits(connection, "reply"):
            _send([connection], text)

    def _now(self) -> int:
        return int(self._clock() * 1e6)

    # Trades.

    async def _trade(self) -> None:
        """Send each trade of the market when it is made."""
        while True:
            self._send_made()
            await asyncio.sleep(pacing.SLICE)

    def _send_made(self) -> None:
        """Send the trades that were made since the last call."""
        self._made_at = max(self._made_at, self._clock())
        for name in self.tape.names:
            last = self.tape.last(name)
            first = self._last_sent.get(name, last) + 1
            self._last_sent[name] = last
            if first <= last and (listeners := self._listeners(name)):
                self._pass_on(listeners, self.tape.trades(name, max(first, last - MAX_LATE), last))

    def _pass_on(self, listeners: Sequence[Connection], trades: Sequence[Trade]) -> None:
        """Send these trades of one symbol. A client that does not read is disconnected."""
        texts = self._venue.messages([each for trade in trades for each in self._wire(trade)], self._now())
        for each in listeners:
            if each.socket.transport.get_write_buffer_size() > MAX_UNREAD:
                each.socket.transport.abort()
            each.subscriptions.idle = False
        for text in texts:
            _send(listeners, text)
        self._events_sent += len(texts) * len(listeners)

    async def _replay(self, recording: Recording) -> None:
        """Send each message as it is, at its time. The slowest client sets the pace."""
        playback = pacing.Playback(recording.messages[0].at, self._config.speed, self._listeners)
        for number, message in enumerate(recording.messages):
            await playback.until(message.at)
            passed = [each for trade in message.trades for each in self._wire(trade)]
            same = passed == list(message.trades)
            texts = [message.text] if same else self._venue.messages(passed, self._now())
            for connection in self._listeners(message.trades[0].name if message.trades else None):
                for text in texts:
                    self._events_sent += bool(passed)
                    with suppress(ConnectionClosed):
                        await connection.socket.send(text)
            recording.play(message)  # not before it was sent: a heartbeat names the newest trade
            if number % pacing.BURST == 0:
                await asyncio.sleep(0)
        self._replayed = True

    async def _supervise(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this work. If it fails, close all connections."""
        try:
            await work
        except Exception:
            logger.exception("simulator: the market or the wire failed")
            await self._close(tuple(self._open.values()), 1011, "internal error", STOP_TIMEOUT)
        finally:
            self._over.set()

    async def _beat(self) -> None:
        """Send the heartbeats of each second."""
        while True:
            await asyncio.sleep(HEARTBEAT)
            for connection in self._open.values():
                for text in self._venue.heartbeats(connection.subscriptions, self.tape, self._now()):
                    self._reply(connection, text)
                connection.subscriptions.idle = True

    def _listeners(self, name: str | None = None) -> list[Connection]:
        """The connections with a subscription of this symbol, or of any."""
        return [
            each
            for each in self._open.values()
            if (each.subscriptions.trades if name is None else name in each.subscriptions.trades)
            and each.is_open
            and self._permits(each, "price")
        ]


def _send(connections: Iterable[Connection], text: str) -> None:
    """Send a message without waiting. After a reset of the connection, asyncio would log each write."""
    broadcast([each.socket for each in connections if not each.socket.transport.is_closing()], text)
