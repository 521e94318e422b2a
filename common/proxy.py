"""Chooses the HTTP proxy of a connection from the usual environment variables. Pure: the environment is passed in.

The libraries that we connect with disagree about these variables (`all_proxy`, ports and address ranges in `no_proxy`),
and some of them ignore an invalid value. So tickpipe decides, and passes the decision to the library.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from common.errors import ConfigurationError
from common.settings import Secret

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(frozen=True)
class Proxy:
    """A proxy and the environment variable that names it. `str()` shows no credentials."""

    variable: str
    url: Secret

    @property
    def host(self) -> str:
        """Host name or IP address."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int:
        """Port number; 80 or 443 if the URL has none."""
        return self._parts.port or _DEFAULT_PORTS[self._parts.scheme]

    @property
    def login(self) -> tuple[str, str] | None:
        """User name and password, decoded; None if the URL has none."""
        user = self._parts.username
        return (unquote(user), unquote(self._parts.password or "")) if user else None

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url.reveal())

    def __str__(self) -> str:
        return f"the proxy {f'[{self.host}]' if ':' in self.host else self.host}:{self.port} ({self.variable})"


def for_url(url: str, environ: Mapping[str, str], *, schemes: Collection[str] = ("http",)) -> Proxy | None:
    """Return the proxy for a connection to `url`; None if it is direct. A loopback address never has a proxy.

    `https_proxy` is for https and wss, `http_proxy` for http and ws, `all_proxy` for both. A lower-case variable takes
    precedence over its upper-case form. Raises ConfigurationError if the variable is invalid, or if its scheme is not
    among `schemes`, which are those that the caller can connect through.
    """
    target = urlsplit(url)
    host, port = (target.hostname or "").rstrip("."), target.port or _DEFAULT_PORTS[target.scheme]
    if is_loopback(host) or _is_excluded(host, port, _read(environ, "no_proxy")[1]):
        return None
    for name in ("https_proxy" if target.scheme in {"https", "wss"} else "http_proxy", "all_proxy"):
        variable, value = _read(environ, name)
        if value:
            return _parse(variable, value, schemes)
    return None


def websocket_options(proxy: Proxy | None) -> dict[str, Any]:
    """Return options for `WebSocket.connect` of websocket-client. With them it ignores the environment."""
    if proxy is None:
        return {"http_proxy_host": "unused", "http_proxy_port": 80, "http_no_proxy": ["*"]}
    return {
        "http_proxy_host": proxy.host,
        "http_proxy_port": proxy.port,
        "http_proxy_auth": proxy.login,
        "http_no_proxy": ["-"],  # an empty list would make it read no_proxy
    }


def is_loopback(host: str) -> bool:
    """Return whether this host is the machine itself, by its name or its address. Nothing is resolved."""
    name = host.rstrip(".").lower()
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _read(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    variable = name if name in environ else name.upper()
    return variable, environ.get(variable, "").strip()


def _is_excluded(host: str, port: int, no_proxy: str) -> bool:
    """Entries are names (with their subdomains), addresses and ranges, each with or without a port; or `*`."""
    address = _address(host)
    for entry in no_proxy.lower().replace(",", " ").split():
        with suppress(ValueError):
            network = ipaddress.ip_network(entry.strip("[]"), strict=False)
            if address is not None and address in network:
                return True
            continue
        name, colon, number = entry.rpartition(":")
        if colon and number != str(port):
            continue
        name = (name if colon else entry).strip("[]").removeprefix("*").strip(".")
        if entry == "*" or (name and (host == name or host.endswith(f".{name}"))):
            return True
    return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    with suppress(OSError, ValueError):
        return ipaddress.ip_address(socket.inet_aton(host))  # short forms, as 127.1
    return None


def _parse(variable: str, value: str, schemes: Collection[str]) -> Proxy:
    """The error never quotes the value: a part of the password may be anywhere in an invalid URL."""
    url = value if "://" in value else f"http://{value}"
    problem = ""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")
        if parts.port == 0 or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            problem = "it is not a valid URL"
        elif not host or re.search(r"\s", host):
            problem = "it has no valid host"
        elif parts.scheme not in schemes:
            problem = f"this connection supports only proxies with {' or '.join(f'{each}://' for each in schemes)}"
    except ValueError:
        problem = "it is not a valid URL"
    if problem:
        raise ConfigurationError(
            f"{variable}: {problem}. It looks like http://[user:password@]host:port. Percent-encode special characters "
            "in the password ('#' is %23). To connect without a proxy, add the server's name to no_proxy"
        )
    return Proxy(variable, Secret(url))
