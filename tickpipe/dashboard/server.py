"""Serves the page over HTTP, with limits on connections, pages and requests."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable

import h11
import uvicorn
from fastapi import FastAPI
from nicegui import Client, ui
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from common import clock, threads
from common.errors import TickpipeError
from common.http_guard import RequestGuard
from common.streams.channels import ChannelStreams
from tickpipe.dashboard import DashboardConfig, fragments, listen, page
from tickpipe.dashboard.history import Charts
from tickpipe.dashboard.quotes import Quotes
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.database import DatabaseReader
from tickpipe.inspect.reader import StatusReader
from tickpipe.inspect.sessions import SessionReader, read_database_info
from tickpipe.inspect.snapshot import Snapshot
from tickpipe.inspect.symbols import SymbolReader

#: The niceness of this process: the pipeline has priority.
NICENESS = 10
#: Seconds between two updates of the prices, and of the pipeline.
PRICES_EVERY, PIPELINE_EVERY = 0.5, 1.0
#: Seconds that browsers have to close their connections when the server ends.
SHUTDOWN_TIMEOUT = 1
#: Open HTTP connections, websockets and pages, at most.
MAX_CONNECTIONS, MAX_WEBSOCKETS, MAX_PAGES = 100, 50, 50
#: Seconds from the start of a connection, or from its last answer, to the end of an answer, at most.
ANSWER_WITHIN = 60.0
#: Bytes of a request's head and of a body or websocket message, at most. Browsers send long cookies to localhost.
MAX_HEAD, MAX_BODY = 65_536, 1 << 20


def serve(config: DashboardConfig, stop: threading.Event, ready: Callable[[str], object]) -> None:
    """Serve until `stop` is set. `ready` receives the URL. Raises ConfigurationError if the address is not free."""
    os.nice(NICENESS)
    listener = listen(config.host, config.port)
    databases = [DatabaseReader.read_only(config.database_url) for _ in range(3)]  # a slow query must not delay others

    channels = ChannelStreams.of_group(config.redis_url, config.price_stream, config.consumer_group, "dashboard")
    page.build(
        page.Sources(
            quotes=Quotes(SymbolReader(databases[0]), every=PRICES_EVERY - 0.1),
            charts=Charts(SymbolReader(databases[1]), every=PRICES_EVERY - 0.1),
            pipeline=pipeline_query(channels, databases[2]),
        ),
        page.PageConfig(
            stream=config.price_stream,
            simulated=config.simulated,
            prices_every=PRICES_EVERY,
            pipeline_every=PIPELINE_EVERY,
        ),
    )
    host, port = listener.getsockname()[:2]
    server = uvicorn.Server(
        uvicorn.Config(
            _Guarded(_app(), RequestGuard(config.host, config.allowed_hosts)),
            http=_BoundedConnection,
            h11_max_incomplete_event_size=MAX_HEAD,
            ws_max_size=MAX_BODY,
            log_level="error",  # a warning per bad request could fill the log
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        )
    )
    # In the main thread, uvicorn would replace the signal handlers that end this process with status 0.
    running = threads.in_thread(server.run, sockets=[listener])
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    while not stop.wait(0.2) and not running.done():
        pass
    logging.getLogger("nicegui").setLevel(logging.CRITICAL)  # its tasks end with this process
    server.should_exit = True
    running.result()
    for database in databases:
        database.close()


def pipeline_query(
    channels: ChannelStreams, database: DatabaseReader, monotonic: Callable[[], float] = time.monotonic
) -> CachedQuery[Snapshot]:
    """The snapshots that all browsers share.

    The expensive parts have their own pauses. A reading that waits in an outage costs nothing, so the next one follows
    without a longer pause: the page shows the end of an outage at once.
    """
    reader = StatusReader(
        channels,
        clock.microseconds,
        monotonic,
        began=0,
        sessions=SessionReader(database, monotonic).read,
        database=lambda: read_database_info(database),
        caught=TickpipeError,
    )
    return CachedQuery(reader.read, PIPELINE_EVERY - 0.1, monotonic, pause_factor=0)


class _Guarded:
    """Refuses requests to other hosts, from other pages, or above a limit. Passes all others on."""

    def __init__(self, app: ASGIApp, guard: RequestGuard) -> None:
        self._app = app
        self._guard = guard
        self._websockets = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._guard.refusal(headers.getlist("host"), headers.getlist("origin")) or self._overload(scope)
        if refused and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before acceptance, this is HTTP status 403
        elif refused:
            status, reason = refused
            await PlainTextResponse(f"{reason}\n", status)(scope, receive, send)
        elif scope["type"] == "websocket":
            self._websockets += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._websockets -= 1
        else:
            await self._app(scope, _bounded(receive), send)

    def _overload(self, scope: Scope) -> tuple[int, str] | None:
        if scope["type"] == "websocket":
            full = self._websockets >= MAX_WEBSOCKETS
        else:  # a page without a browser is removed after a minute
            full = len(Client.instances) >= MAX_PAGES and not scope["path"].startswith("/_nicegui")
        return (503, "too many open pages: close some, or try again in a minute") if full else None


def _bounded(receive: Receive) -> Receive:
    """The request, cut off after MAX_BODY bytes of its body."""
    left = MAX_BODY

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return bounded


class _BoundedConnection(H11Protocol):
    """An HTTP connection. Above MAX_CONNECTIONS, a new one closes the oldest. Each answer must end in ANSWER_WITHIN."""

    since = 0.0  # the start of the connection, in the loop's seconds
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Limit the number of connections and the time of this one."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._restart_limit()
        others = [each for each in self.connections if isinstance(each, _BoundedConnection)]
        if len(others) > MAX_CONNECTIONS:
            min(others, key=lambda each: (each.is_answering, each.since)).transport.abort()

    @property
    def is_answering(self) -> bool:
        """Whether a request is complete and its answer is not."""
        return not getattr(self.cycle, "response_complete", True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        self._cancel_limit()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Cancel the time limit: a websocket stays open, and uvicorn's pings detect a dead client."""
        self._cancel_limit()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """Start the time limit of the next request."""
        self._restart_limit()
        super().on_response_complete()

    def _restart_limit(self) -> None:
        self._cancel_limit()
        self._limit = self.loop.call_later(ANSWER_WITHIN, self.transport.abort)

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()


def _app() -> FastAPI:
    app = FastAPI(openapi_url=None)
    ui.run_with(
        app,
        title="tickpipe",
        favicon=fragments.ICON,
        dark=None,
        tailwind=False,
        binding_refresh_interval=None,
        show_welcome_message=False,
    )
    return app
