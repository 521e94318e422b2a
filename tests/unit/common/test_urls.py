"""A URL connects to the server it names or is refused. No password is used as a host or quoted."""

from __future__ import annotations

import re
import traceback
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn

from common import settings
from common.database.connections import check_url
from common.errors import ConfigurationError
from common.streams.client import connect

SECRET = "S3cr@t"


class Server(NamedTuple):
    """The server of a URL."""

    host: str | None
    port: int | str | None
    db: int | str | None
    user: str | None = None
    password: str | None = None


def redis_server(url: str) -> Server:
    client = connect(settings.redis_url({"REDIS_URL": url}), "prices")
    found: dict[str, Any] = client.connection_pool.connection_kwargs
    host = found.get("host") or found.get("path")
    return Server(host, found.get("port"), found.get("db"), found.get("username"), found.get("password"))


def database_server(url: str) -> Server:
    secret = settings.database_url({"DATABASE_URL": url})
    check_url(secret)
    found = parse_dsn(secret.reveal())
    return Server(*(found.get(name) for name in ("host", "port", "dbname", "user", "password")))


REACHES = {"REDIS_URL": redis_server, "DATABASE_URL": database_server}


def refusal(name: str, url: str) -> str:
    """The error of a refused URL."""
    with pytest.raises(ConfigurationError) as caught:
        REACHES[name](url)
    assert caught.value.exit_status == 2
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET[:3] not in shown.partition("common.errors.ConfigurationError: ")[2]
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://host", Server("host", None, None)),
        ("redis://host:6380/", Server("host", 6380, None)),
        ("redis://host:/3", Server("host", None, 3)),
        ("redis://user:pa:ss@Host.example:1/15", Server("host.example", 1, 15, "user", "pa:ss")),
        ("redis://:p%23%2F%3F%40%25%20%C3%A4@host", Server("host", None, None, None, "p#/?@% ä")),
        ("redis://us%3Aer:p@host", Server("host", None, None, "us:er", "p")),
        ("redis://:p@ss@host", Server("host", None, None, None, "p@ss")),
        ("redis://:pä ss@host", Server("host", None, None, None, "pä ss")),
        ("rediss://u:p@[::1]:6380/1?ssl_cert_reqs=none", Server("::1", 6380, 1, "u", "p")),
        ("redis://[fe80::1%eth0]:7", Server("fe80::1%eth0", 7, None)),
        ("redis://host?db=3&health_check_interval=9", Server("host", None, 3)),
        ("redis://host/0?username=u&password=p%40ss", Server("host", None, 0, "u", "p@ss")),
        ("unix:///run/my redis/r@dis.sock?db=2", Server("/run/my redis/r@dis.sock", None, 2)),
        ("unix://u:p@/run/redis.sock", Server("/run/redis.sock", None, None, "u", "p")),
    ],
)
def test_redis_url_connects_to_the_named_server(url: str, server: Server) -> None:
    assert redis_server(url) == server


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("postgresql://localhost:5432/tickpipe", Server("localhost", "5432", "tickpipe")),
        ("postgres://user@/db", Server(None, None, "db", "user")),
        ("postgresql://", Server(None, None, None)),
        ("postgresql:///db?host=/run/postgresql&port=5433", Server("/run/postgresql", "5433", "db")),
        ("postgresql:///db?host=@abstract", Server("@abstract", None, "db")),
        ("postgresql://u:p@%2Frun%2Fpostgresql/db", Server("/run/postgresql", None, "db", "u", "p")),
        ("postgresql://u:p@h1:1,h2:2/db?target_session_attrs=read-write", Server("h1,h2", "1,2", "db", "u", "p")),
        ("postgresql://h1,h2:5433,[::1]/db", Server("h1,h2,::1", ",5433,", "db")),
        ("postgresql://h1,h2/db?port=5433", Server("h1,h2", "5433", "db")),
        ("postgresql://u:p@[fe80::1%25eth0]:5432/db", Server("fe80::1%eth0", "5432", "db", "u", "p")),
        ("postgresql://u:p%23%2F%3F%40%25%20%C3%A4@h/db", Server("h", None, "db", "u", "p#/?@% ä")),
        ("postgresql://u:p#a?b:c[d]@h/db", Server("h", None, "db", "u", "p#a?b:c[d]")),
        ("postgresql://u:p@h/db?sslmode=verify-full&sslrootcert=/ca.pem", Server("h", None, "db", "u", "p")),
        ("postgresql://h/db?options=-c%20work_mem%3D1MB", Server("h", None, "db")),
        ("host=h port=5432 dbname=d user=u password=p", Server("h", "5432", "d", "u", "p")),
        ("host = h\n password = 'it\\'s a \\\\ = secret'", Server("h", None, None, None, "it's a \\ = secret")),
        ("host=h password='' user=u", Server("h", None, None, "u", "")),
        ("host=h password=p#/?@%zz", Server("h", None, None, None, "p#/?@%zz")),
        ("host=h1,h2 port=1,2", Server("h1,h2", "1,2", None)),
        ("hostaddr=127.0.0.1,127.0.0.2 port=1,2", Server(None, "1,2", None)),
    ],
)
def test_database_url_connects_to_the_named_server(url: str, server: Server) -> None:
    assert database_server(url) == server


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:123#45@host", "it has a '#'"),
        (f"redis://u:{SECRET}#word@host", "it has a '#'"),
        ("redis://host/0#x", "it has a '#'"),
        ("redis://:123/45@host", "'@' follows"),
        ("redis://u:123/4?5@host", "'@' follows"),
        ("redis://u?x:p@host", "'@' follows"),
        ("redis://u:12?password=x@host", "'@' follows"),
        ("redis://:123?45", "name=value"),
        ("redis://:123", "no host"),
        ("redis://", "no host"),
        ("redis:///0", "no host"),
        ("redis://:p@", "no host"),
        ("redis://:p@:6379", "no host"),
        ("redis://:p@:0", "no host"),
        ("redis://h1,h2", "one host"),
        ("redis://h1:1,h2:2/0", "one host"),
        ("redis://::1/0", "one host"),
        ("redis://host:port", "a number"),
        ("redis://host:٣", "a number"),
        ("redis://host:0", "between 1 and 65535"),
        ("redis://host:65536", "between 1 and 65535"),
        ("redis://host:-1", "a number"),
        ("redis://host/x", "database is not a number"),
        ("redis://host/-1", "database is not a number"),
        ("redis://host/1/2", "database is not a number"),
        ("redis://host?db=", "name=value"),
        ("redis://host?db=x", "not a number"),
        ("redis://host?db=-1", "not a number"),
        ("redis://host?nonsense=1", "parameter"),
        (f"redis://:{SECRET}%zz@host", "'%'"),
        ("redis://:100%@host", "'%'"),
        ("redis://:%FF@host", "not UTF-8"),
        ("redis://:a\tb@host", "tab"),
        ("redis://:a\nb@host", "line break"),
        ("redis://:a[b@host", "percent-encoded"),
        ("redis://[::1", "percent-encoded"),
        ("redis://[::1]x", "one host"),
        ("redis://:℀@host", "percent-encoded"),
        (f"redis://{'a' * 64}", "percent-encoded"),
        ("http://host", "does not begin with redis://"),
        ("redis:/host", "does not begin with redis://"),
        ("redis:host", "does not begin with redis://"),
        ("REDIS://host", "does not begin with redis://"),
        (f"{SECRET}:6379", "does not begin with redis://"),
        ("host:6379", "does not begin with redis://"),
        ("unix://run/redis.sock", "has a host"),
        ("unix://:p/w@/run/redis.sock", "has a host"),
        ("unix:///u:p@/run/redis.sock", "'@' follows"),
        ("unix://", "no path"),
        ("unix:/run/redis.sock", "does not begin with redis://"),
    ],
)
def test_ambiguous_redis_url_is_refused(url: str, reason: str) -> None:
    message = refusal("REDIS_URL", url)
    assert re.match(rf"REDIS_URL is not a Redis URL: .*{re.escape(reason)}", message)
    assert "'#' is %23" in message


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"postgresql://u:{SECRET}#word@host", "a host has '@', '#'"),
        ("postgresql://u:a@b@host/db", "a host has '@'"),
        ("postgresql://u:p@h#x/db", "'#'"),
        ("postgresql://u:p@h x/db", "a blank"),
        ("postgresql://u:12/b@host/db", "'@' follows"),
        ("postgresql://u/x:p@host/db", "'@' follows"),
        ("postgresql://u:1/x?user=y@host", "'@' follows"),
        (f"postgresql://u:{SECRET[:4]}/x", "a port that is not a number"),
        ("postgresql://h:port/db", "a port that is not a number"),
        ("postgresql://h:0/db", "between 1 and 65535"),
        ("postgresql://h1:1,h2:65536/db", "between 1 and 65535"),
        ("postgresql://h/db?port=99999", "between 1 and 65535"),
        ("postgresql://h1,h2,h3/db?port=1,2", "as many ports"),
        ("postgresql://u:%zz@host/db", "'%'"),
        ("postgresql://u:100%@host/db", "'%'"),
        ("postgresql://u:%FF@host/db", "not UTF-8"),
        ("postgresql://u:%00@host/db", "libpq cannot read it"),
        ("postgresql://u:a\tb@host/db", "tab"),
        ("postgresql://u:p@[::1/db", "a bracket"),
        ("postgresql://u:p@::1/db", "a port that is not a number"),
        ("postgresql://u:p@host/db?nonsense=1", "does not know a parameter"),
        ("postgresql://u:p@host/db?sslmode", "libpq cannot read it"),
        (f"mysql://u:{SECRET}@host/db?a=b", "does not begin with postgresql://"),
        ("http://host", "does not begin with postgresql://"),
        ("postgres:host=h", "does not begin with postgresql://"),
        ("postgresql:/host/db", "does not begin with postgresql://"),
        ("POSTGRESQL://host", "does not begin with postgresql://"),
        (SECRET, "does not begin with postgresql://"),
        (f"host=h password={SECRET} word", "libpq cannot read it"),
        (f"host=h password='{SECRET}", "libpq cannot read it"),
        (f"host=h password='it's {SECRET}'", "libpq cannot read it"),
        ("password= host=h", "no value after '='"),
        ("host=h password=a\\b", "single '\\'"),
        (f"host=h pass={SECRET}", "does not know a parameter"),
        ("host=h port=abc", "between 1 and 65535"),
        ("host=h1,h2 port=1,2,3", "as many ports"),
    ],
)
def test_ambiguous_database_url_is_refused(url: str, reason: str) -> None:
    message = refusal("DATABASE_URL", url)
    assert re.match(rf"DATABASE_URL is not a PostgreSQL URL: .*{re.escape(reason)}", message)
    assert "'#' is %23" in message


#: Texts with special characters of URLs and with invisible characters.
passwords = st.text(
    st.sampled_from("#?/@:%[]&=+,;'\" \\\t\n\x00\x1b\u200bäπ09afxyz") | st.characters(codec="utf-8"), max_size=12
)
#: The server of each kind of URL, and the URL with a place for user and password.
WRITTEN = {
    "REDIS_URL": ("redis://{user}:{password}@host.example:6380/1", Server("host.example", 6380, 1)),
    "DATABASE_URL": ("postgresql://{user}:{password}@host.example:6380/db", Server("host.example", "6380", "db")),
}


@pytest.mark.parametrize("name", list(WRITTEN))
@given(user=passwords, password=passwords)
@example(user="u", password="S3cr@t#word")
@example(user="u", password="12/3")
@example(user="u", password="%41")
def test_percent_encoded_password_is_decoded(name: str, user: str, password: str) -> None:
    url, server = WRITTEN[name]
    encoded = url.format(user=quote(user, safe=""), password=quote(password, safe=""))
    if name == "DATABASE_URL" and "\0" in user + password:  # PostgreSQL passwords cannot contain it
        refusal(name, encoded)
        return
    found = REACHES[name](encoded)
    assert found[:3] == server[:3]
    assert (found.user or "", found.password or "") == (user, password)


def static_texts(name: str) -> str:
    """The messages for users and passwords of one character, as a reference without secrets."""
    texts = []
    for character in "#?/@:%[]\t\n\x00\x1b\u200b℀":
        for user, password in (("u", character), (character, "p")):
            try:
                REACHES[name](WRITTEN[name][0].format(user=user, password=password))
            except ConfigurationError as error:
                texts.append(str(error))
    return "\n".join(texts)


@pytest.mark.parametrize("name", list(WRITTEN))
@given(user=passwords.map(lambda text: text.replace(":", "")), password=passwords)
@example(user="u", password="123#45")
@example(user="u", password="12?password=3")
@example(user="u", password="S3cr@t#word")
@example(user="1?2", password="3")
@example(user="/u", password="3")
def test_raw_password_is_used_or_refused(name: str, user: str, password: str) -> None:
    """Users have no ':' because the password starts after the first one."""
    url, server = WRITTEN[name]
    try:
        found = REACHES[name](url.format(user=user, password=password))
    except ConfigurationError as error:
        message = str(error)
    else:
        assert found[:3] == server[:3]
        assert (found.user or "", found.password or "") == (unquote(user), unquote(password))
        return
    static = static_texts(name)
    for secret in (user, password):
        for n in range(len(secret) - 2):
            assert secret[n : n + 3] not in message or secret[n : n + 3] in static
