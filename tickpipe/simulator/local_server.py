"""A websocket and HTTP server on one port, in a thread with its own event loop, so that callers stay synchronous.

The servers of the feeds are subclasses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, Literal, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from common.http_guard import RequestGuard
from tickpipe.simulator.config import ServerConfig, Summary, listen_error
from tickpipe.simulator.connection import Connection, close_all
from tickpipe.simulator.handshakes import Handshakes

#: Seconds that a client has at the end of a replay to read the rest and answer the close frame.
FLUSH_TIMEOUT = 60.0
#: Seconds that a client has to answer the close frame when the server stops.
STOP_TIMEOUT = 1.0
#: Limit of open websockets.
MAX_CONNECTIONS = 200
#: Seconds that a client has to send its request.
HANDSHAKE_TIMEOUT = 60.0


class LocalServer:
    """Serves from start() to stop(). Methods may be called from any thread. It can start once only."""

    #: Path of the websocket.
    path = "/"

    def __init__(self, config: ServerConfig, clock: Callable[[], float]) -> None:
        self._server_config = config
        self._guard = RequestGuard(config.host)
        self._clock = clock
        self._port = 0
        self._lifecycle = threading.Lock()
        self._thread: threading.Thread | None = None
        self._began = self._ended = 0.0
        self._over = threading.Event()  # the replay has ended, or the server was stopped
        self._replayed = False
        # Used by the server's thread only.
        self._loop: asyncio.AbstractEventLoop
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes = Handshakes()
        self._open: dict[int, Connection] = {}
        self._connections = 0
        self._events_sent = 0

    # Public interface, for any thread.

    def start(self) -> None:
        """Start to serve. Raises ConfigurationError for a bad file, a taken port or an address of another host."""
        with self._lifecycle:
            if self._thread:
                raise RuntimeError("a simulator can start once only")
            self._load()
            ready: Future[int] = Future()
            thread = threading.Thread(
                target=lambda: asyncio.run(self._serve(ready)), name="tickpipe-simulator", daemon=True
            )
            thread.start()
            try:
                self._port = ready.result()
            except (OSError, UnicodeError) as exc:  # UnicodeError: an invalid host name
                thread.join()
                raise listen_error(self._server_config, exc) from exc
            self._thread = thread
            self._began = time.monotonic()

    @property
    def url(self) -> str:
        """`ws://HOST:PORT/PATH`, without a key."""
        return f"ws://{self._address}{self.path}"

    @property
    def rest_url(self) -> str:
        """`http://HOST:PORT`, the base URL of REST calls."""
        return f"http://{self._address}"

    @property
    def _address(self) -> str:
        host = f"[{self._server_config.host}]" if ":" in self._server_config.host else self._server_config.host
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

    # Hooks for subclasses. All but the first run in the server's thread.

    def _load(self) -> None:
        """Read files before the server starts. Raises ConfigurationError."""

    def _begin(self) -> None:
        """The server has started: spawn tasks."""

    async def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        """Answer the opening handshake: None to accept it, else an HTTP response. Other requests get a response."""
        raise NotImplementedError

    def _refuse(self, socket: ServerConnection, status: int) -> Response:
        """Refuse a handshake with this HTTP status."""
        return socket.respond(HTTPStatus(status), f"{HTTPStatus(status).phrase}\n")

    def _opened(self, connection: Connection) -> None:
        """A connection has been opened."""

    def _serving(self, connection: Connection) -> Coroutine[Any, Any, None] | None:  # noqa: ARG002
        """The work for a connection while it is open, in addition to answers."""
        return None

    async def _received(self, connection: Connection, message: str | bytes) -> None:
        """Answer a client's message."""
        raise NotImplementedError

    def _subscribed(self, connection: Connection) -> None:
        """A connection has subscribed and been answered."""

    def _permits(self, connection: Connection, what: Literal["price", "reply", "close"]) -> bool:  # noqa: ARG002
        """Whether the server may now send this."""
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task, which stop() cancels."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self, connections: Iterable[Connection], code: int, reason: str, timeout: float) -> None:
        permitted = [each for each in connections if self._permits(each, "close")]
        await close_all(permitted, code, reason, timeout)

    # Server and connections.

    async def _serve(self, ready: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        # The library logs request paths, which contain the API key. A separate logger object has no handlers.
        silent = logging.Logger("websockets", logging.CRITICAL + 1)
        try:
            server = await serve(
                self._handle,
                self._server_config.host,
                self._server_config.port,
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
        self._begin()
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
        serving = self._serving(connection)
        work = self._loop.create_task(serving) if serving else None
        try:
            async for message in socket:
                await self._received(connection, message)
        except ConnectionClosed:
            pass
        finally:
            if work:
                work.cancel()
            del self._open[connection.number]
