"""Serves the page: binds, tells the address, and ends when told to."""

from __future__ import annotations

import asyncio
import os
import threading
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
from common.http_guard import RequestGuard
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from tickpipe.dashboard import DashboardConfig, listen, page, parts
from tickpipe.dashboard.data import Reader
from tickpipe.dashboard.health import HealthMonitor
from tickpipe.dashboard.history import Charts
from tickpipe.dashboard.quotes import Quotes

#: The pipeline comes first: so much nicer is this process than it.
NICENESS = 10
#: Seconds between two looks, at least: at prices, and at the pipeline.
PRICES_EVERY, HEALTH_EVERY = 0.5, 1.0
#: Seconds that browsers get to let go at the end.
GRACE = 1
#: Open HTTP connections, websockets and pages, at most.
MAX_CONNECTIONS, MAX_WEBSOCKETS, MAX_PAGES = 100, 50, 50
#: Seconds from a connection's start, or from its last answer, to the end of an answer, at most.
ANSWER_WITHIN = 60.0
#: Bytes of a request's head and of a body or websocket message, at most. A browser's cookies for localhost are long.
MAX_HEAD, MAX_BODY = 65_536, 1 << 20


def serve(config: DashboardConfig, stop: threading.Event, ready: Callable[[str], object]) -> None:
    """Serve until `stop` is set; `ready` is told the address. Raises ConfigurationError where it cannot be had."""
    os.nice(NICENESS)
    listener = listen(config.host, config.port)
    readers = [Reader(config.database_url) for _ in range(3)]  # a slow past does not keep the prices waiting
    stream = ConsumerGroup(connect(config.redis_url), config.price_stream, config.consumer_group, "dashboard")
    page.build(
        page.Lookouts(
            quotes=Quotes(readers[0], every=PRICES_EVERY - 0.1),
            charts=Charts(readers[1], every=PRICES_EVERY - 0.1),
            pipeline=HealthMonitor(stream, readers[2], clock.microseconds, every=HEALTH_EVERY - 0.1),
        ),
        page.Shown(
            stream=config.price_stream,
            simulated=config.simulated,
            prices_every=PRICES_EVERY,
            health_every=HEALTH_EVERY,
        ),
    )
    host, port = listener.getsockname()[:2]
    server = uvicorn.Server(
        uvicorn.Config(
            _Guarded(_app(), RequestGuard(config.host, config.allowed_hosts)),
            http=_BoundedConnection,
            h11_max_incomplete_event_size=MAX_HEAD,
            ws_max_size=MAX_BODY,
            log_level="error",  # a warning for each bad request could fill the log
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
    )
    # In a thread, as uvicorn takes signals over in the main one; ours end the process in its order, with status 0.
    running = threads.in_thread(server.run, sockets=[listener])
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    while not stop.wait(0.2) and not running.done():
        pass
    server.should_exit = True
    running.result()
    for reader in readers:
        reader.close()


class _Guarded:
    """Passes on requests to this server, from its own pages, as far as they are bounded; refuses all others."""

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
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP status 403
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
        else:  # a page that no browser connects to is removed after a minute
            full = len(Client.instances) >= MAX_PAGES and not scope["path"].startswith("/_nicegui")
        return (503, "too many open pages: close some, or try again in a minute") if full else None


def _bounded(receive: Receive) -> Receive:
    """The same request, cut off after MAX_BODY bytes of its body."""
    left = MAX_BODY

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return bounded


class _BoundedConnection(H11Protocol):
    """An HTTP connection. A new one closes the oldest of too many; each request has ANSWER_WITHIN."""

    since = 0.0  # when the connection was made, in the loop's seconds
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Bound number and time."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._restart_limit()
        others = [each for each in self.connections if isinstance(each, _BoundedConnection)]
        if len(others) > MAX_CONNECTIONS:
            min(others, key=lambda each: (each.is_answering, each.since)).transport.abort()

    @property
    def is_answering(self) -> bool:
        """Whether a request is complete, and its answer is not."""
        return not getattr(self.cycle, "response_complete", True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the limit."""
        self._cancel_limit()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """A websocket stays open; uvicorn's pings find out if its client is unavailable."""
        self._cancel_limit()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """The time of the next request begins."""
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
        favicon=parts.ICON,
        dark=None,
        tailwind=False,
        binding_refresh_interval=None,
        show_welcome_message=False,
    )
    return app
