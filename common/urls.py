"""Refuses a REDIS_URL or DATABASE_URL that a library would read as another server, or quote a password of. Pure.

redis-py and libpq cut a URL at the first '#', '/' or '?'. In `redis://:123#45@host` the password then is a port of this
machine. No message has any part of the URL.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from common.errors import ConfigurationError

_ENCODE = (
    "Percent-encode special characters in user and password: '#' is %23, '/' is %2F, '?' is %3F, '@' is %40, '%' is %25"
)
_AT = "an '@' follows a '/' or a '?'"


def redis_error(title: str, reason: str) -> ConfigurationError:
    """The error for a text that is not a Redis URL."""
    return ConfigurationError(
        f"{title} is not a Redis URL: {reason}. It looks like redis://[[user]:password@]host:6379/0, rediss://… for "
        "TLS, unix:///path/to/socket, redis+sentinel://host:26379,host2:26379/service/0, or "
        f"redis+cluster://host:6379,host2:6379. {_ENCODE}"
    )


def database_error(title: str, reason: str) -> ConfigurationError:
    """The error for a text that is neither a PostgreSQL URL nor libpq's name=value form."""
    return ConfigurationError(
        f"{title} is not a PostgreSQL URL: {reason}. It looks like postgresql://user:password@host:5432/database. "
        f"{_ENCODE}"
    )


def refuse_redis(text: str, title: str = "REDIS_URL") -> None:
    """Raise ConfigurationError, beginning with `title`, unless redis-py reads the URL as it is written."""
    if reason := _escapes(text) or _redis(text):
        raise redis_error(title, reason)


def refuse_database(text: str, title: str = "DATABASE_URL") -> None:
    """Raise ConfigurationError, beginning with `title`, unless libpq reads the URL as it is written."""
    url = re.fullmatch(r"postgres(?:ql)?://(.*)", text, re.DOTALL)
    if reason := (_escapes(text) or _postgres(url[1])) if url else _name_value(text):
        raise database_error(title, reason)


def _escapes(text: str) -> str | None:
    if re.search(r"[\t\r\n]", text):
        return "it has a line break or a tab"
    without_zone = re.sub(r"\[[0-9A-Fa-f:.]+%", "[", text)  # of an IPv6 address, as in [fe80::1%eth0]
    if re.search(r"%(?![0-9A-Fa-f]{2})", without_zone):
        return "a '%' is not followed by two hexadecimal digits"
    try:
        unquote(text, errors="strict")
    except UnicodeDecodeError:
        return "its percent escapes are not UTF-8"
    return None


def _redis(text: str) -> str | None:
    parts = re.fullmatch(r"(rediss?(?:\+(?:sentinel|cluster))?|unix)://([^/?]*)([^?]*)\??(.*)", text)
    if not parts:
        return "it does not begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
    scheme, authority, path, query = parts.groups()
    hosts = authority.rpartition("@")[2]
    if "#" in text:
        return "it has a '#'"
    if "@" in query and authority:
        return _AT
    try:
        for host in hosts.split(","):
            (urlsplit(f"redis://{authority.removesuffix(hosts)}{host}").hostname or "").encode("idna")
    except ValueError:  # its text has the user and the password
        return "its user, password or host has characters that must be percent-encoded"
    if not all(re.fullmatch(r"db=[0-9]+|(?!db=)[^=]+=.+", part) for part in query.split("&") if part):
        return "the part after '?' is not name=value, or its db is not a number"
    if "+" in scheme:
        return _redis_nodes(scheme.partition("+")[2], hosts, path, query)
    return _redis_socket(hosts, path) if scheme == "unix" else _redis_server(hosts, path)


def _redis_nodes(kind: str, hosts: str, path: str, query: str) -> str | None:
    """The hosts of Sentinels or of nodes of a cluster, separated by commas."""
    if "@" in path:
        return _AT
    if kind == "sentinel" and not re.fullmatch(r"/[^/@]+(?:/[0-9]*)?", path):
        return "it needs the name of the service after the hosts, as in /mymaster or /mymaster/0"
    if kind == "cluster" and (path not in {"", "/", "/0"} or re.search(r"(?:^|&)db=0*[1-9]", query)):
        return "a Redis Cluster has database 0 only"
    return next(filter(None, (_redis_server(host, "") for host in hosts.split(","))), None)


def _redis_socket(host: str, path: str) -> str | None:
    if host:
        return "it has a host; the path of a socket begins with '/', as in unix:///path"
    if "@/" in path:
        return _AT
    return None if path.strip("/") else "it has no path of a socket"


def _redis_server(host: str, path: str) -> str | None:
    if "@" in path:
        return _AT
    if re.fullmatch(r"(?::[0-9]*)?", host):
        return "it has no host"
    found = re.fullmatch(r"(?:\[[^\[\]]+\]|[^\[\]:,\s]+)(?::([0-9]*))?", host)
    if not found:
        return "it needs one host, and a port that is a number. Put an IPv6 address in brackets"
    if found[1] and not 0 < int(found[1]) < 65_536:
        return "its port is not between 1 and 65535"
    return None if re.fullmatch(r"/?|/[0-9]+/?", path) else "its database is not a number, as in /0"


def _postgres(rest: str) -> str | None:
    """libpq: the first '@' ends user and password, unless a '/' is before it; ',' separates hosts."""
    user, at, tail = rest.partition("@")
    if not at or "/" in user:
        user, tail = "", rest
    hosts = re.split(r"[/?]", tail, maxsplit=1)[0]
    path, _, query = tail[len(hosts) :].partition("?")
    if "@" in path or ("@" in query and (user or hosts)):
        return _AT
    if not all(re.fullmatch(r"(?:\[[^\[\]\s]+\]|[^\[\]:@#\s]*)(?::[0-9]*)?", host) for host in hosts.split(",")):
        return "a host has '@', '#', a blank, a bracket or a port that is not a number"
    return None


def _name_value(text: str) -> str | None:
    if not re.match(r"\s*\w+\s*=|$", text):
        return "it does not begin with postgresql:// or postgres://"
    if re.search(r"\\(?![\\' ])", text):
        return r"a value has a single '\'; write '\\'"
    if re.search(r"=\s+\w+\s*=", re.sub(r"'(?:\\.|[^'\\])*'", "''", text)):
        return "a name has no value after '='; an empty value is ''"
    return None
