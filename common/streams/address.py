"""The servers that a Redis URL names. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from redis.connection import parse_url

_PORTS = {"sentinel": 26_379, "cluster": 6379}


class Address(NamedTuple):
    """The parts of a Redis URL.

    `kind`: "server", "sentinel" or "cluster". `nodes`: the Sentinels or cluster nodes to ask for the primary.
    `service`: its name at the Sentinels. `options` and `sentinel_options`: redis-py's parameters for a connection to
    the primary and to a Sentinel.
    """

    kind: str
    nodes: Sequence[tuple[str, int]]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def parse(url: str) -> Address:
    """Read a URL that `urls.refuse_redis` has accepted. Raises ValueError or TypeError for unknown parameters.

    Sentinels get the URL's TLS parameters, but not its user and password; they have `sentinel_username` and
    `sentinel_password` after the "?".
    """
    parts = re.fullmatch(r"(rediss?)\+(sentinel|cluster)://([^/?]*)([^?]*)\??(.*)", url)
    if not parts:
        return Address("server", (), "", _options(url), {})
    scheme, kind, authority, path, query = parts.groups()
    user, at, hosts = authority.rpartition("@")
    service, _, database = path.strip("/").partition("/") if kind == "sentinel" else ("", "", "0")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    login = {name: parameters.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    options = _options(f"{scheme}://{user}{at}host/{database or 0}?{urlencode(parameters)}")
    del options["host"]
    sentinel_options = {name: value for name, value in options.items() if name.startswith("ssl")} | login
    nodes = [_node(host, _PORTS[kind]) for host in hosts.split(",")]
    return Address(kind, nodes, unquote(service), options, sentinel_options)


def _options(url: str) -> dict[str, Any]:
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    return options


def _node(text: str, port: int) -> tuple[str, int]:
    host, number = re.fullmatch(r"(\[[^\]]*\]|[^:]*):?([0-9]*)", text).groups()  # type: ignore[union-attr]
    return unquote(host.strip("[]")), int(number or port)
