"""The simulator: a local server of Twelve Data's websocket protocol and of the REST call `time_series`, on one port.

The server runs in a thread with its own event loop, so that callers stay synchronous.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from common.http_guard import RequestGuard
from tickpipe.simulator import pacing, protocol, rest
from tickpipe.simulator.capture import Capture
from tickpipe.simulator.config import SimulatorConfig, Summary, listen_error
from tickpipe.simulator.connection import Connection, close_all, json_response
from tickpipe.simulator.handshakes import Handshakes
from tickpipe.simulator.random_walk import Event, EventSource, RandomWalk

logger = logging.getLogger(__name__)

#: Called with the number of a connection and the event, before the event is sent.
Journal = Callable[[int, Event], None]

#: Path of the websocket, and the last part of the path of the REST call.
PATH, BARS = "/v1/quotes/price", "/time_series"
#: Seconds that a client has at the end of a replay to read the rest and answer the close frame.
FLUSH_TIMEOUT = 60.0
#: Seconds that a client has to answer the close frame when the simulator stops.
STOP_TIMEOUT = 1.0
#: Limit of open websockets.
MAX_CONNECTIONS = 200
#: Seconds that a client has to send its request.
HANDSHAKE_TIMEOUT = 60.0


class Simulator:
    """Serves price events from start() to stop(). Methods may be called from any thread. It can start once only.

    `source` replaces the random walk. The simulator's thread calls `journal` for each price event that it sends. A
    capture is replayed once, for all connections together: the replay begins with the first subscription and pauses
    while no connection has one.
    """

    def __init__(
        self,
        config: SimulatorConfig,
        source: EventSource | None = None,
        journal: Journal | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._guard = RequestGuard(config.host)
        self._source: EventSource = source or RandomWalk(random.Random(config.seed))  # noqa: S311  prices, not secrets
        self._journal = journal
        self._clock = clock
        self._capture: Capture | None = None
        self._port = 0
        self._lifecycle = threading.Lock()
        self._thread: threading.Thread | None = None
        self._began = self._ended = 0.0
        self._over = threading.Event()  # the replay has ended, or the simulator was stopped
        self._replayed = False
        # Used by the simulator's thread only.
        self._loop: asyncio.AbstractEventLoop
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes = Handshakes()
        self._open: dict[int, Connection] = {}
        self._connections = 0
        self._events_sent = 0
        self._credits = rest.Credits(config.credits_per_minute)

    # Public interface, for any thread.

    def start(self) -> None:
        """Start to serve. Raises ConfigurationError for a bad capture, a taken port or an address of another host."""
        with self._lifecycle:
            if self._thread:
                raise RuntimeError("a simulator can start once only")
            if self._config.capture:
                self._capture = Capture(self._config.capture)
            ready: Future[int] = Future()
            thread = threading.Thread(
                target=lambda: asyncio.run(self._serve(ready)), name="tickpipe-simulator", daemon=True
            )
            thread.start()
            try:
                self._port = ready.result()
            except (OSError, UnicodeError) as exc:  # UnicodeError: an invalid host name
                thread.join()
                raise listen_error(self._config, exc) from exc
            self._thread = thread
            self._began = time.monotonic()

    @property
    def url(self) -> str:
        """`ws://HOST:PORT/v1/quotes/price`, without a key."""
        return f"ws://{self._address}{PATH}"

    @property
    def rest_url(self) -> str:
        """`http://HOST:PORT`, the base URL of `/time_series`."""
        return f"http://{self._address}"

    @property
    def _address(self) -> str:
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"{host}:{self._port}"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the replay and of its connections, or for stop(). True if the replay has ended."""
        self._over.wait(timeout)
        return self._replayed

    def stop(self) -> Summary:
        """Close all connections (code 1001) and the port, within two seconds. May be called again."""
        with self._lifecycle:
            if self._thread and not self._ended:
                with contextlib.suppress(RuntimeError):  # the loop has already ended
                    self._loop.call_soon_threadsafe(self._stopping.set)
                self._thread.join()
                self._ended = time.monotonic()
                self._over.set()
            return Summary(
                connections=self._connections, events_sent=self._events_sent, seconds=self._ended - self._began
            )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Hooks for subclasses that simulate faults. They run in the simulator's thread.

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

    def _opened(self, connection: Connection) -> None:
        """A connection has been opened."""

    def _subscribed(self, connection: Connection) -> None:
        """A connection has subscribed and been answered."""

    def _permits(self, connection: Connection, what: Literal["price", "reply", "close"]) -> bool:  # noqa: ARG002
        """Whether the server may now send this."""
        return True

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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task, which stop() cancels."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Server and connections.

    async def _serve(self, ready: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        # The library logs request paths, which contain the API key. A separate logger object has no handlers.
        silent = logging.Logger("websockets", logging.CRITICAL + 1)
        try:
            server = await serve(
                self._handle,
                self._config.host,
                self._config.port,
                process_request=self._check,
                create_connection=self._handshakes.accept,  # type: ignore[arg-type] # documented: any factory
                compression=None,
                open_timeout=HANDSHAKE_TIMEOUT,
                ping_interval=None,  # a slow client is not disconnected
                close_timeout=FLUSH_TIMEOUT,
                logger=silent,
            )
        except Exception as exc:  # noqa: BLE001 - start() raises it
            ready.set_exception(exc)
            return
        if self._capture:
            self._spawn(self._replay(self._capture))
        ready.set_result(server.sockets[0].getsockname()[1])
        await self._stopping.wait()
        await self._shut_down(server)

    async def _check(self, socket: ServerConnection, request: Request) -> Response | None:
        """Refuse a request from another site's page or above the limit; `_admit` answers the others."""
        headers = request.headers
        refused = self._guard.refusal(headers.get_all("Host"), headers.get_all("Origin"))
        if refused is None and len(self._open) >= MAX_CONNECTIONS:
            refused = HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"
        if refused:
            status, reason = refused
            return socket.respond(status, f"{reason}\n")
        return await self._admit(socket, request)

    async def _shut_down(self, server: Server) -> None:
        server.close(close_connections=False)
        for task in tuple(self._tasks):
            task.cancel()
        await self._close(self._open.values(), 1001, "going away", STOP_TIMEOUT)
        self._handshakes.abort_all()
        await server.wait_closed()

    async def _handle(self, socket: ServerConnection) -> None:
        self._connections += 1
        connection = Connection(self._connections, socket)
        self._open[connection.number] = connection
        self._opened(connection)
        walk = None if self._capture else self._loop.create_task(self._walk(connection))
        try:
            async for message in socket:
                await self._received(connection, message)
        except ConnectionClosed:
            pass
        finally:
            if walk:
                walk.cancel()
            del self._open[connection.number]

    async def _close(self, connections: Iterable[Connection], code: int, reason: str, timeout: float) -> None:
        permitted = [each for each in connections if self._permits(each, "close")]
        await close_all(permitted, code, reason, timeout)

    async def _subscribe(self, connection: Connection, symbols: protocol.Symbols) -> None:
        reply, accepted = protocol.subscribe(symbols, self._find_instrument)
        await self._reply(connection, reply)
        connection.symbols.update(accepted)  # after the reply, so that no price precedes it
        if connection.symbols:
            connection.subscribed.set()
        self._subscribed(connection)

    def _find_instrument(self, symbol: str) -> Event | None:
        source: Capture | EventSource = self._capture or self._source
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

    async def _replay(self, capture: Capture) -> None:
        try:
            await pacing.replay(capture, self._config.speed, listeners=self._listeners, send=self._send_price)
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
