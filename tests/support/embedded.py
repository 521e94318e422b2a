"""Embedded servers: their processes, their data and a process that owns them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import psutil
import psycopg2
import pytest
import redis

from common.errors import ConfigurationError
from tickpipe.local.servers.embedded import Servers, embedded_servers
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer

ROOT = Path(__file__).parents[2]


AnyServer = type[ValkeyServer] | type[PostgresServer]


#: A process that runs the servers until its stdin is closed.
OWNER = """
import sys
from pathlib import Path
from tickpipe.local.servers.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1])) as servers:
    print(servers.redis_url, servers.database_url, flush=True)
    sys.stdin.read()
"""


def write(servers: Servers, value: int) -> None:
    """Write one acknowledged stream entry and one committed row."""
    assert servers.redis_url
    assert servers.database_url
    with closing(redis.Redis.from_url(servers.redis_url)) as stream:
        stream.xadd("prices", {"price": value})
    run_sql(servers.database_url, "CREATE TABLE IF NOT EXISTS ticks (price int)", f"INSERT INTO ticks VALUES ({value})")


def run_sql(url: str, *statements: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def prices(servers: Servers) -> tuple[list[int], list[int]]:
    """The values of `write` in the stream and in the table."""
    assert servers.redis_url
    assert servers.database_url
    with closing(redis.Redis.from_url(servers.redis_url, decode_responses=True)) as stream:
        entries = cast("list[tuple[str, dict[str, str]]]", stream.xrange("prices"))
    rows = run_sql(servers.database_url, "SELECT price FROM ticks ORDER BY price")
    return [int(fields["price"]) for _, fields in entries], [int(str(price)) for (price,) in rows]


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def server_processes(data_dir: Path) -> list[psutil.Process]:
    files = (data_dir / "valkey/valkey.pid", data_dir / "postgres-18/data/postmaster.pid")
    return [psutil.Process(int(file.read_text().split()[0])) for file in files]


def refusal(data_dir: Path) -> str:
    """The one-line error of a start on this folder."""
    with pytest.raises(ConfigurationError) as refused, embedded_servers(data_dir):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


@contextmanager
def owner(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs the servers. It is stopped at the end of the context."""
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("unix://")
        yield process
