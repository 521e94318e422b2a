"""A local server that speaks Twelve Data's websocket protocol: random-walk prices, or a capture replayed. On the same
port it answers the REST call `time_series`, with a random walk of its own.

The server runs in a thread with its own event loop, so that callers stay synchronous.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import math
import random
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from common.errors import ConfigurationError
from common.http_guard import RequestGuard
from tickpipe.simulator.capture import Capture
from tickpipe.simulator.random_walk import Event, EventSource, RandomWalk
from tickpipe.simulator.rest import _asked_for, _error

logger = logging.getLogger(__name__)
Journal = Callable[[int, Event], None]

#: The one path of the websocket, and how the one of bars ends.
PATH, BARS = "/v1/quotes/price", "/time_series"
#: Seconds between two looks at the clock while prices are being paced.
SLICE = 0.005
#: Seconds between two looks at who listens while a replay waits.
POLL = 0.02
#: A walk that falls further behind than this (seconds) forgets the rest: stale prices help nobody.
MAX_DEBT = 1.0
#: Events sent in a row before the loop may do something else: a fast client never makes `send` wait.
BURST = 64
#: Seconds a client has to take the rest and answer the close frame at the end of a replay …
FLUSH_TIMEOUT = 60.0
#: … and when the simulator is stopped.
STOP_TIMEOUT = 1.0
#: Connections in the handshake, and open websockets, at most.
MAX_HANDSHAKES, MAX_CONNECTIONS = 100, 200
#: Seconds for a client to send its request.
HANDSHAKE_TIMEOUT = 60.0

KEY_REFUSED = (
    "**apikey** parameter is incorrect or not specified. "
    "You can get your free API key instantly following this link: https://twelvedata.com/pricing. "
    "If you believe that everything is correct, you can contact us at https://twelvedata.com/contact/customer"
)


# --- The server ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatorConfig:
    """`rate`: price events a second on each connection. `speed` of a replay: 2 is twice as fast as recorded, 0 as fast
    as clients take it. `api_key`: None accepts any key that is not empty. `credits_per_minute`: REST calls that are
    answered in a minute of the clock; None: all. Raises ConfigurationError."""

    host: str = "127.0.0.1"
    port: int = 0  # any free one
    rate: float = 10.0
    capture: Path | None = None
    speed: float = 1.0
    api_key: str | None = field(default=None, repr=False)
    credits_per_minute: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigurationError(f"--port {self.port}: expected 0 (any free one) to 65535")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigurationError(f"--rate {self.rate}: expected price events a second, above 0")
        if not (math.isfinite(self.speed) and self.speed >= 0):
            raise ConfigurationError(f"--speed {self.speed}: expected 0 (as fast as possible) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a simulator did from start to stop."""

    connections: int
    events_sent: int
    seconds: float

    def __str__(self) -> str:
        rate = self.events_sent / self.seconds if self.seconds else 0.0
        plural = "" if self.connections == 1 else "s"
        return (
            f"{self.events_sent:,} price events sent to {self.connections} connection{plural} "
            f"in {self.seconds:.1f} s ({rate:,.0f}/s)"
        )


@dataclass(eq=False, slots=True)
class Connection:
    """An open websocket. `symbols`: symbol → exchange if the client named one; whose turn is next comes first."""

    number: int
    socket: ServerConnection
    symbols: OrderedDict[str, str | None] = field(default_factory=OrderedDict)
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_open(self) -> bool:
        return self.socket.state is State.OPEN


class Simulator:
    """Serves price events from start() to stop(). Its methods may be called from any thread; it starts once.

    `source` replaces the random walk. `journal(connection_number, event)` is called, in the simulator's thread, for
    each price event when it is handed to that connection. A capture is replayed once, as one market: from the first
    subscription on, standing still while no connection is subscribed to anything.
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
        self._source: EventSource = source or RandomWalk(random.Random(config.seed))  # noqa: S311 - prices, no secrets
        self._journal = journal
        self._clock = clock
        self._capture: Capture | None = None
        self._port = 0
        self._lifecycle = threading.Lock()
        self._thread: threading.Thread | None = None
        self._began = self._ended = 0.0
        self._over = threading.Event()  # replayed to the end, or stopped
        self._replayed = False
        # All below belongs to the simulator's thread.
        self._loop: asyncio.AbstractEventLoop
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: weakref.WeakSet[ServerConnection] = weakref.WeakSet()  # also those still in the handshake
        self._handshakes: list[ServerConnection] = []  # the oldest first
        self._open: dict[int, Connection] = {}
        self._connections = 0
        self._events_sent = 0
        self._credits = (0, 0)  # the minute, and how many were used in it

    # Called by the user, in any thread.

    def start(self) -> None:
        """Serve. Raises ConfigurationError: bad capture, port taken, or an address that is not ours."""
        with self._lifecycle:
            if self._thread:
                raise RuntimeError("a simulator starts once")
            if self._config.capture:
                self._capture = Capture(self._config.capture)
            ready: Future[int] = Future()
            thread = threading.Thread(
                target=lambda: asyncio.run(self._serve(ready)), name="tickpipe-simulator", daemon=True
            )
            thread.start()
            try:
                self._port = ready.result()
            except (OSError, UnicodeError) as exc:  # UnicodeError: a host name that cannot be one
                thread.join()
                raise self._cannot_listen(exc) from exc
            self._thread = thread
            self._began = time.monotonic()

    @property
    def url(self) -> str:
        """`ws://HOST:PORT/v1/quotes/price`, without a key."""
        return f"ws://{self._place}{PATH}"

    @property
    def rest_url(self) -> str:
        """`http://HOST:PORT`, below which it answers `/time_series`."""
        return f"http://{self._place}"

    @property
    def _place(self) -> str:
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"{host}:{self._port}"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the capture was replayed to its end and its connections were closed (or until stop());
        True if it was."""
        self._over.wait(timeout)
        return self._replayed

    def stop(self) -> Summary:
        """Close all connections (1001, going away) and the port, within two seconds. May be repeated."""
        with self._lifecycle:
            if self._thread and not self._ended:
                with contextlib.suppress(RuntimeError):  # the loop has ended of itself
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

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _cannot_listen(self, exc: Exception) -> ConfigurationError:
        host, port = self._config.host, self._config.port
        if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
            return ConfigurationError(f"port {port} on {host} is taken; choose another with --port (0: any free one)")
        return ConfigurationError(f"cannot listen on {host}, port {port}; choose others with --host, --port ({exc})")

    # For subclasses that simulate faults. All run in the simulator's thread.

    async def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        """Answer the opening handshake: None to accept it, else what to say instead."""
        url = urlsplit(request.path)
        params = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path.endswith(BARS):
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            key = key if scheme.lower() == "apikey" else params.get("apikey", "")
            return self._respond(socket, *self._answer(params, key))
        if url.path != PATH:
            return socket.respond(HTTPStatus.NOT_FOUND, "Not found.\n")
        if not self._knows(params.get("apikey") or request.headers.get("X-TD-APIKEY", "")):
            return self._refuse(socket, HTTPStatus.OK)
        return None

    def _knows(self, key: str) -> bool:
        return bool(key) and self._config.api_key in (None, key)

    def _refuse(self, socket: ServerConnection, status: int) -> Response:
        """Refuse the key as Twelve Data's websocket does: the error is in the body, the HTTP status is 200."""
        return self._respond(socket, status, _error(401, KEY_REFUSED)[1])

    def _respond(self, socket: ServerConnection, status: int, body: Event) -> Response:
        response = socket.respond(status, json.dumps(body))
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    def _answer(self, params: Mapping[str, str], key: str) -> tuple[int, Event]:
        """The HTTP status and the body that answer a call of `time_series`."""
        now = self._clock()
        minute, used = self._credits
        self._credits = minute, used = int(now // 60), (used + 1 if minute == now // 60 else 1)
        if not self._knows(key):
            return _error(401, KEY_REFUSED)
        if self._config.credits_per_minute is not None and used > self._config.credits_per_minute:
            return _error(
                429,
                f"You have run out of API credits for the current minute. {used} API credits were used, "
                f"with the current limit being {self._config.credits_per_minute}. Wait for the next minute.",
            )
        symbol, _, exchange = params.get("symbol", "").partition(":")
        source: Capture | EventSource = self._capture or self._source
        instrument = source.instrument(symbol)
        if instrument is None or not _is_listed_on(instrument, params.get("exchange") or exchange or None):
            return _error(
                404, f"**symbol** not found: {symbol}. Please specify it correctly according to API Documentation."
            )
        try:
            bars = _asked_for(params, instrument["symbol"], now)
        except (KeyError, ValueError) as exc:
            return _error(400, f"a parameter is missing or wrong: {exc}")
        if not bars:
            return _error(400, "No data is available on the specified dates. Try setting different start/end dates.")
        meta = {
            "symbol": instrument["symbol"],
            "interval": "1min",
            "exchange": instrument["exchange"],
            "type": instrument["type"],
        }
        return HTTPStatus.OK, {"meta": meta, "values": bars, "status": "ok"}

    def _opened(self, connection: Connection) -> None:
        """A connection has been opened."""

    def _subscribed(self, connection: Connection) -> None:
        """A connection has subscribed and been answered."""

    def _permits(self, connection: Connection, what: Literal["price", "reply", "close"]) -> bool:  # noqa: ARG002
        """Whether the server may now send this."""
        return True

    async def _received(self, connection: Connection, message: str | bytes) -> None:
        """Answer a client's message; one that makes no sense gets an error event and changes nothing."""
        try:
            request = json.loads(message)
            request = request if isinstance(request, dict) else {}
            action, params = request.get("action"), request.get("params")
            if action == "heartbeat":
                await self._reply(connection, {"event": "heartbeat", "status": "ok"})
            elif action == "subscribe":
                await self._subscribe(connection, _requested(params))
            elif action == "unsubscribe":
                await self._unsubscribe(connection, _requested(params))
            elif action == "reset":
                connection.symbols.clear()
                await self._reply(connection, {"event": "reset-status", "status": "ok"})
            else:
                raise ValueError(f"unknown action {action!r}")
        except (ValueError, RecursionError) as exc:
            error = {"event": "error", "status": "error", "code": 400, "message": f"invalid request: {exc}"}
            await self._reply(connection, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside all else; cancelled at stop."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The life of the server and of a connection.

    async def _serve(self, ready: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        # The library logs request paths, which hold the key; its own logger object keeps them from every handler.
        silent = logging.Logger("websockets", logging.CRITICAL + 1)
        try:
            server = await serve(
                self._handle,
                self._config.host,
                self._config.port,
                process_request=self._check,
                create_connection=self._accept,  # type: ignore[arg-type] # documented: any factory
                compression=None,
                open_timeout=HANDSHAKE_TIMEOUT,
                ping_interval=None,  # clients ping; a slow one is to be waited for, not thrown out
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
        """Refuse a request of another site's page, or one too many; else let `_admit` answer it."""
        headers = request.headers
        refused = self._guard.refusal(headers.get_all("Host"), headers.get_all("Origin"))
        if refused is None and len(self._open) >= MAX_CONNECTIONS:
            refused = HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"
        if refused:
            status, reason = refused
            return socket.respond(status, f"{reason}\n")
        return await self._admit(socket, request)

    def _accept(self, *args: Any, **kwargs: Any) -> ServerConnection:
        socket = ServerConnection(*args, **kwargs)
        self._sockets.add(socket)
        self._handshakes.append(socket)
        self._loop.call_soon(self._bound_handshakes)
        return socket

    def _bound_handshakes(self) -> None:
        """Close the oldest connections that have not sent their request yet, if there are too many.

        A connection that was just accepted has no transport yet; the next call closes it.
        """
        self._handshakes = [each for each in self._handshakes if each.state is State.CONNECTING]
        excess = max(0, len(self._handshakes) - MAX_HANDSHAKES)
        for socket in [each for each in self._handshakes if hasattr(each, "transport")][:excess]:
            self._handshakes.remove(socket)
            socket.transport.abort()

    async def _shut_down(self, server: Server) -> None:
        server.close(close_connections=False)
        for task in tuple(self._tasks):
            task.cancel()
        await self._close(self._open.values(), 1001, "going away", STOP_TIMEOUT)
        for socket in tuple(self._sockets):  # handshakes, and peers that did not answer
            socket.transport.abort()
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
            pass  # how a client leaves is its own affair
        finally:
            if walk:
                walk.cancel()
            del self._open[connection.number]

    async def _close(self, connections: Iterable[Connection], code: int, reason: str, timeout: float) -> None:
        """Close in order, what was sent first; cut off who has not taken it and answered within `timeout` seconds.

        A client's close frame is the end: whether it then closes its socket is not waited for.
        """
        closing = {
            self._loop.create_task(connection.socket.close(code, reason)): connection.socket
            for connection in connections
            if self._permits(connection, "close")
        }
        deadline = self._loop.time() + timeout
        while self._loop.time() < deadline and any(
            not task.done() and socket.protocol.close_rcvd is None for task, socket in closing.items()
        ):
            await asyncio.sleep(SLICE)
        for socket in closing.values():
            socket.transport.abort()  # of no effect on those closed
        await asyncio.gather(*closing)

    # What a client asks for.

    async def _subscribe(self, connection: Connection, requested: list[tuple[str, str | None]]) -> None:
        success: list[Event] = []
        fails: list[Event] = []
        accepted: list[tuple[str, str | None]] = []
        for symbol, exchange in requested:
            source: Capture | EventSource = self._capture or self._source
            instrument = source.instrument(symbol)
            if instrument is None:
                fails.append({"symbol": symbol, "message": "symbol not found"})
            elif not _is_listed_on(instrument, exchange):
                fails.append({"symbol": f"{symbol}:{exchange}", "message": f"symbol not found on {exchange}"})
            else:
                success.append(instrument)
                accepted.append((instrument["symbol"], exchange and (instrument["exchange"] or exchange)))
        await self._reply(connection, _status("subscribe-status", success, fails))
        connection.symbols.update(accepted)  # after the reply: no price overtakes it
        if connection.symbols:
            connection.subscribed.set()
        self._subscribed(connection)

    async def _unsubscribe(self, connection: Connection, requested: list[tuple[str, str | None]]) -> None:
        success: list[Event] = []
        fails: list[Event] = []
        for symbol, _ in requested:
            source: Capture | EventSource = self._capture or self._source
            instrument = source.instrument(symbol)
            if instrument and instrument["symbol"] in connection.symbols:
                del connection.symbols[instrument["symbol"]]
                success.append(instrument)
            else:
                fails.append({"symbol": symbol, "message": "not subscribed"})
        await self._reply(connection, _status("unsubscribe-status", success, fails))

    async def _reply(self, connection: Connection, reply: Event) -> None:
        if self._permits(connection, "reply"):
            await connection.socket.send(json.dumps(reply))

    # Prices.

    async def _send_price(self, connection: Connection, event: Event, text: str) -> None:
        """Hand over one event; returns when the client has room for the next. Raises ConnectionClosed."""
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
                    await self._pace(connection)
                await connection.subscribed.wait()
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception("the source or the journal of the simulator failed")
            await connection.socket.close(1011, "internal error")

    async def _pace(self, connection: Connection) -> None:
        """Send `rate` events a second, each symbol in its turn, until nothing is subscribed.

        By deadline: what a late wake-up missed is made up for. An event is made only when it can be sent.
        """
        interval = 1 / self._config.rate
        due = self._loop.time() + interval
        while connection.symbols and connection.is_open:
            now = self._loop.time()
            due = max(due, now - MAX_DEBT)
            owed = max(0, math.floor((now - due) / interval) + 1)
            due += owed * interval
            for count in range(1, owed + 1):
                if not self._listens(connection):
                    break
                symbol, exchange = next(iter(connection.symbols.items()))
                connection.symbols.move_to_end(symbol)
                event = self._source.event(symbol, exchange, self._clock())
                await self._send_price(connection, event, json.dumps(event))
                if count % BURST == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(max(SLICE, due - self._loop.time()))

    async def _replay(self, capture: Capture) -> None:
        try:
            await self._play(capture)
            await self._close(tuple(self._open.values()), 1000, "", FLUSH_TIMEOUT)
            self._replayed = True
        except Exception:
            logger.exception("the replay failed")
            await self._close(tuple(self._open.values()), 1011, "internal error", STOP_TIMEOUT)
        finally:
            self._over.set()

    async def _play(self, capture: Capture) -> None:
        """Send each event, when its time has come, to all who subscribed to its symbol; the slowest sets the pace."""
        first = capture.lines[0][0]
        market_time = 0.0  # seconds during which anyone listened
        looked = self._loop.time()
        for count, (at, event) in enumerate(capture.lines):
            due = (at - first) / self._config.speed if self._config.speed else 0.0
            while True:
                now = self._loop.time()
                listened = bool(self._listeners())
                market_time += now - looked if listened else 0.0
                looked = now
                if listened and market_time >= due:
                    break
                await asyncio.sleep(min(POLL, due - market_time) if listened else POLL)
            text = json.dumps(event)
            for connection in self._listeners():
                if event["symbol"] in connection.symbols:
                    with contextlib.suppress(ConnectionClosed):
                        await self._send_price(connection, event, text)
            if count % BURST == 0:
                await asyncio.sleep(0)

    def _listens(self, connection: Connection) -> bool:
        return bool(connection.symbols) and connection.is_open and self._permits(connection, "price")

    def _listeners(self) -> list[Connection]:
        return [each for each in self._open.values() if self._listens(each)]


def _requested(params: Any) -> list[tuple[str, str | None]]:
    """(symbol, exchange or None) of {"symbols": "AAPL,RY:TSX"} and of {"symbols": [{"symbol": "AAPL"}, …]}.

    Raises ValueError.
    """
    symbols = params.get("symbols") if isinstance(params, dict) else None
    requested: list[tuple[Any, Any]] = []
    if isinstance(symbols, str):
        parts = [part.strip().partition(":") for part in symbols.split(",") if part.strip()]
        requested = [(symbol, exchange or None) for symbol, _, exchange in parts]
    elif isinstance(symbols, list) and all(isinstance(each, dict) for each in symbols):
        requested = [(each.get("symbol"), each.get("exchange") or each.get("mic_code") or None) for each in symbols]
    sound = [symbol and isinstance(symbol, str) and isinstance(exchange, str | None) for symbol, exchange in requested]
    if not sound or not all(sound):
        raise ValueError('expected "params": {"symbols": "AAPL,RY:TSX"} or {"symbols": [{"symbol": "AAPL"}]}')
    return requested


def _is_listed_on(instrument: Event, exchange: str | None) -> bool:
    """By the exchange's name or its code; an instrument without one (forex) takes any."""
    if exchange is None or not instrument["exchange"]:
        return True
    return exchange.upper() in (instrument["exchange"].upper(), instrument["mic_code"].upper())


def _status(kind: str, success: list[Event], fails: list[Event]) -> Event:
    status = "ok" if not fails else "warning" if success else "error"
    return {"event": kind, "status": status, "success": success, "fails": fails or None}
