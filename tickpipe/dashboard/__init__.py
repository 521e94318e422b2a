"""The dashboard: a read-only page with prices, candles, gaps and the state of the pipeline.

Only its modules import the optional extra `dashboard`, so importing this package is cheap.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from common.errors import ConfigurationError
from common.settings import Secret

#: The default address.
PORT = 8080
HOST = "127.0.0.1"
#: Advice by error number.
_ADVICE = {errno.EADDRINUSE: "choose another --port", errno.EACCES: "choose a --port above 1023"}


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """The servers to read and the address to listen on.

    `port`: 0 for any free one. `simulated`: mark the prices as simulated. `allowed_hosts`: more names of this
    server. Addresses and local names are always allowed.
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
    """Whether the optional extra is installed."""
    return find_spec("nicegui") is not None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Connections wait in it until the page is ready. Raises ConfigurationError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        advice = _ADVICE.get(error.errno or 0, "--host must be an address of this machine, or 0.0.0.0 for all")
        raise ConfigurationError(f"the dashboard cannot listen on {host} port {port}: {reason}; {advice}") from None


def free_port() -> int:
    """PORT if it is free on the loopback interface, otherwise any free port."""
    try:
        listener = listen(HOST, PORT)
    except ConfigurationError:
        listener = listen(HOST, 0)
    with listener:
        return int(listener.getsockname()[1])
