"""`tickpipe dashboard`."""

from __future__ import annotations

from typing import Annotated

import typer

from common import cli, log, process, settings
from common.terminal import echo
from tickpipe.dashboard import HOST, PORT, DashboardConfig
from tickpipe.extras import required_extra

Host = Annotated[
    str, typer.Option(envvar="DASHBOARD_HOST", help="Address to listen on. The dashboard has no authentication.")
]
Port = Annotated[
    int,
    typer.Option(envvar="DASHBOARD_PORT", min=0, max=65535, help="Port to listen on; 0 takes a free port."),
]
Simulated = Annotated[bool, typer.Option("--simulated", help="Mark the prices as simulated on the page.")]


def dashboard(
    host: Host = HOST,
    port: Port = PORT,
    simulated: Simulated = False,
    allowed_hosts: settings.AllowedHosts = "",
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
) -> None:
    """Serve a read-only page with live candles, gaps and the pipeline's health. Needs the extra `dashboard`."""
    with required_extra("dashboard", "tickpipe dashboard"):
        from tickpipe.dashboard.server import serve
    environ = cli.environment()
    config = DashboardConfig(
        redis_url=settings.redis_url(environ),
        database_url=cli.database_url(),
        price_stream=price_stream,
        consumer_group=consumer_group,
        host=host,
        port=port,
        simulated=simulated,
        allowed_hosts=settings.read_hosts(allowed_hosts),
    )
    log.configure("WARNING", [config.redis_url, config.database_url])
    serve(config, process.stop_on_signals(), lambda url: echo(f"dashboard: {url}  Press Ctrl-C to stop"))
