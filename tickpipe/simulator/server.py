"""The simulator: a local server of Twelve Data's websocket protocol and of the REST call `time_series`, on one port."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tickpipe.simulator import pacing, protocol, rest
from tickpipe.simulator.capture import Capture
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.connection import Connection, json_response
from tickpipe.simulator.local_server import FLUSH_TIMEOUT, STOP_TIMEOUT, LocalServer
from tickpipe.simulator.random_walk import Event, EventSource, RandomWalk

logger = logging.getLogger(__name__)

#: Called with the number of a connection and the event, before the event is sent.
Journal = Callable[[int, Event], None]

#: Path of the websocket, and the last part of the path of the REST call.
PATH, BARS = "/v1/quotes/price", "/time_series"


class Simulator(LocalServer):
    """Serves price events.

    `source` replaces the random walk. The simulator's thread calls `journal` for each price event that it sends. A
    capture, or `recorded`, is replayed once, for all connections together: the replay begins with the first
    subscription and pauses while no connection has one.
    """

    path = PATH

    def __init__(
        self,
        config: SimulatorConfig,
        source: EventSource | None = None,
        journal: Journal | None = None,
        *,
        recorded: pacing.Recorded | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(config, clock)
        self._config = config
        self._source: EventSource = source or RandomWalk(random.Random(config.seed))  # noqa: S311  prices, not secrets
        self._journal = journal
        self._recorded = recorded
        self._credits = rest.Credits(config.credits_per_minute)

    def _load(self) -> None:
        if self._config.capture:
            self._recorded = Capture(self._config.capture)

    def _begin(self) -> None:
        if self._recorded:
            self._spawn(self._replay(self._recorded))

    def _serving(self, connection: Connection) -> Coroutine[Any, Any, None] | None:
        return None if self._recorded else self._walk(connection)

    # Requests and messages of clients.

    async def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        """Answer the opening handshake: None to accept it, else an HTTP response."""
        url = urlsplit(request.path)
        params = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path.endswith(BARS):
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            key = key if scheme.lower() == "apikey" else params.get("apikey", "")
            return json_response(socket, *self._answer(params, key))
        if url.path != PATH:
            return socket.respond(HTTPStatus.NOT_FOUND, "Not found.\n")
        if not self._knows(params.get("apikey") or request.headers.get("X-TD-APIKEY", "")):
            return self._refuse(socket, HTTPStatus.OK)
        return None

    def _knows(self, key: str) -> bool:
        return bool(key) and self._config.api_key in (None, key)

    def _refuse(self, socket: ServerConnection, status: int) -> Response:
        """Refuse the API key. Twelve Data's websocket does so with HTTP status 200 and an error in the body."""
        return json_response(socket, status, rest.refused_key()[1])

    def _answer(self, params: Mapping[str, str], key: str) -> rest.Reply:
        """The HTTP status and the body that answer a call of `time_series`."""
        now = self._clock()
        used, limit = self._credits.spend(now), self._credits.limit
        if not self._knows(key):
            return rest.refused_key()
        if limit is not None and used > limit:
            return rest.out_of_credits(used, limit)
        return rest.time_series(params, self._find_instrument, now)

    async def _received(self, connection: Connection, message: str | bytes) -> None:
        """Reply to a client's message. An invalid message gets an error event and changes nothing."""
        try:
            action, symbols = protocol.parse_request(message)
        except (ValueError, RecursionError) as exc:
            await self._reply(connection, protocol.error_event(exc))
            return
        if action == "subscribe":
            await self._subscribe(connection, symbols)
        elif action == "unsubscribe":
            reply, removed = protocol.unsubscribe(symbols, connection.symbols, self._find_instrument)
            for symbol in removed:
                del connection.symbols[symbol]
            await self._reply(connection, reply)
        elif action == "reset":
            connection.symbols.clear()
            await self._reply(connection, protocol.RESET)
        else:
            await self._reply(connection, protocol.HEARTBEAT)

    async def _subscribe(self, connection: Connection, symbols: protocol.Symbols) -> None:
        reply, accepted = protocol.subscribe(symbols, self._find_instrument)
        await self._reply(connection, reply)
        connection.symbols.update(accepted)  # after the reply, so that no price precedes it
        if connection.symbols:
            connection.subscribed.set()
        self._subscribed(connection)

    def _find_instrument(self, symbol: str) -> Event | None:
        source: pacing.Recorded | EventSource = self._recorded or self._source
        return source.instrument(symbol)

    async def _reply(self, connection: Connection, reply: Event) -> None:
        if self._permits(connection, "reply"):
            await connection.socket.send(json.dumps(reply))

    # Prices.

    async def _send_price(self, connection: Connection, event: Event, text: str) -> None:
        """Send an event. Returns when the client has room for the next. Raises ConnectionClosed."""
        if not connection.is_open or not self._permits(connection, "price"):
            return
        if self._journal:
            self._journal(connection.number, event)
        self._events_sent += 1
        await connection.socket.send(text)

    async def _walk(self, connection: Connection) -> None:
        try:
            while True:
                connection.subscribed.clear()
                if connection.symbols:
                    await pacing.pace(
                        connection,
                        self._source,
                        self._config.rate,
                        clock=self._clock,
                        is_listening=self._is_listening,
                        send=self._send_price,
                    )
                await connection.subscribed.wait()
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception("simulator: the price source or the journal failed")
            await connection.socket.close(1011, "internal error")

    async def _replay(self, recorded: pacing.Recorded) -> None:
        try:
            await pacing.replay(recorded, self._config.speed, listeners=self._listeners, send=self._send_price)
            await self._close(tuple(self._open.values()), 1000, "", FLUSH_TIMEOUT)
            self._replayed = True
        except Exception:
            logger.exception("simulator: the replay failed")
            await self._close(tuple(self._open.values()), 1011, "internal error", STOP_TIMEOUT)
        finally:
            self._over.set()

    def _is_listening(self, connection: Connection) -> bool:
        return bool(connection.symbols) and connection.is_open and self._permits(connection, "price")

    def _listeners(self) -> list[Connection]:
        return [each for each in self._open.values() if self._is_listening(each)]
