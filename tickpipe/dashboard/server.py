"""Serves the page: binds, tells the address, and ends when told to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from common import cli
from common.stream import Stream, connect
from tickpipe.dashboard import DashboardConfig, listen, page, parts
from tickpipe.dashboard.data import Reader
from tickpipe.dashboard.health import Observatory
from tickpipe.dashboard.history import Charts
from tickpipe.dashboard.quotes import Quotes

#: The pipeline comes first: so much nicer is this process than it.
NICENESS = 10
#: Seconds between two looks, at least: at prices, and at the pipeline.
PRICES_EVERY, HEALTH_EVERY = 0.5, 1.0
#: Seconds that browsers get to let go at the end.
GRACE = 1
#: Names by which the loopback is called: a page that an attacker's name leads to is not ours to show.
LOOPBACK = ["127.0.0.1", "localhost"]


def serve(config: DashboardConfig, stop: threading.Event, ready: Callable[[str], object]) -> None:
    """Serve until `stop` is set; `ready` is told the address. Raises ConfigurationError where it cannot be had."""
    os.nice(NICENESS)
    listener = listen(config.host, config.port)
    readers = [Reader(config.database_url) for _ in range(3)]  # a slow past does not keep the prices waiting
    stream = Stream(connect(config.redis_url), config.price_stream, config.consumer_group, "dashboard")
    page.build(
        page.Lookouts(
            quotes=Quotes(readers[0], every=PRICES_EVERY - 0.1),
            charts=Charts(readers[1], every=PRICES_EVERY - 0.1),
            pipeline=Observatory(stream, readers[2], cli.microseconds, every=HEALTH_EVERY - 0.1),
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
        uvicorn.Config(_app(config.host), log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
    )
    # In a thread, as uvicorn takes signals over in the main one; ours end the process in its order, with status 0.
    running = cli.in_thread(server.run, sockets=[listener])
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    while not stop.wait(0.2) and not running.done():
        pass
    server.should_exit = True
    running.result()
    for reader in readers:
        reader.close()


def _app(host: str) -> FastAPI:
    app = FastAPI(openapi_url=None)
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
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
