"""The dashboard: prices, candles, gaps and the pipeline's health on a page in the browser. It only reads.

It needs the optional extra `dashboard`; nothing else of tickpipe does. Importing this package costs nothing: the
extra is loaded by `serve`.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from common.errors import ConfigurationError
from common.settings import Secret

#: Where the page is looked for first.
PORT = 8080
HOST = "127.0.0.1"
#: What to do, by what failed.
_ADVICE = {errno.EADDRINUSE: "another --port may be free", errno.EACCES: "take a --port above 1023, or another right"}


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """What to show and where to listen. `port` 0: any free one. `simulated`: say so on the page.

    `allowed_hosts`: names of this server besides addresses and local names.
    """

    redis_url: Secret
    database_url: Secret
    price_stream: str
    consumer_group: str
    host: str
    port: int
    simulated: bool
    allowed_hosts: Sequence[str] = ()


def installed() -> bool:
    """Whether the optional extra is there."""
    return find_spec("nicegui") is not None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: who comes before the page is ready waits. Raises ConfigurationError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        advice = _ADVICE.get(error.errno or 0, f"--host is an address of this machine, as {HOST}, or 0.0.0.0 for all")
        raise ConfigurationError(f"the dashboard cannot listen on {host} port {port}: {reason}; {advice}") from None


def free_port() -> int:
    """PORT where it is free on the loopback, else any that is."""
    try:
        listener = listen(HOST, PORT)
    except ConfigurationError:
        listener = listen(HOST, 0)
    with listener:
        return int(listener.getsockname()[1])


def serve(config: DashboardConfig, stop: threading.Event, ready: Callable[[str], object]) -> None:
    """Serve the page until `stop` is set; `ready` is told its address. Raises ConfigurationError."""
    if not installed():
        raise ConfigurationError("the dashboard is an optional extra: pip install 'tickpipe[dashboard]'")
    from tickpipe.dashboard import server  # noqa: PLC0415  it loads the extra, which only this command needs

    server.serve(config, stop, ready)
