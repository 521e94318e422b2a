"""Decides by Host and Origin whether a local port answers a request. Pure.

A page of any site can make a browser send requests to our ports, and can give a name of its own to our address (DNS
rebinding). The browser puts both names into the request: Host is the name that was asked for, Origin the page's site.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

#: Endings that no public DNS server resolves, so that no attacker can own such a name.
_PRIVATE_SUFFIXES = (".local", ".localhost", ".internal", ".home.arpa")
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class RequestGuard:
    """The rule of one port. Port on a loopback address: only loopback names. Other address: any IP address and any
    name that no public DNS server resolves. `allowed_hosts` are always allowed."""

    def __init__(self, listen_host: str, allowed_hosts: Iterable[str] = ()) -> None:
        self._only_loopback = _is_loopback(listen_host.lower())
        self._allowed = {host.lower() for host in allowed_hosts}

    def refusal(self, hosts: Sequence[str], origins: Sequence[str]) -> tuple[int, str] | None:
        """HTTP status and reason if a request with these Host and Origin headers is refused, else None."""
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None or not self._is_ours(found["name"].strip("[]").lower()):
            return 400, "the Host header names another server: add its name to --allowed-hosts if it is this one"
        if not all(self._is_same_site(origin, hosts[0]) for origin in origins):
            return 403, "the Origin header names another site: add its name to --allowed-hosts if it is this one"
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self._allowed or _is_loopback(name):
            return True
        if self._only_loopback:
            return False
        return _is_address(name) or "." not in name or name.endswith(_PRIVATE_SUFFIXES)

    def _is_same_site(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in {"http", "https"} or not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin:
            return False
        default = ":443" if parts.scheme == "https" else ":80"
        same = parts.netloc.lower().removesuffix(default) == host.lower().removesuffix(default)
        return same or str(parts.hostname) in self._allowed


def _is_loopback(name: str) -> bool:
    return name == "localhost" or (_is_address(name) and ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
