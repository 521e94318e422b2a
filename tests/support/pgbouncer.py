"""A real pgbouncer in front of a PostgreSQL that the tests started."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psycopg2
from psycopg2.extensions import parse_dsn

from common.errors import ConfigurationError
from tests.support.ports import free_port
from tests.support.waiting import wait_for

#: Server connections of a pool, used in turn, so that successive transactions never share one.
POOL_SIZE = 4


def find_pgbouncer() -> str:
    """The path of pgbouncer. Raises ConfigurationError if it is not installed."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise ConfigurationError("pgbouncer is not installed")
    return program


@contextmanager
def pgbouncer(server_url: str, folder: Path, *, mode: str = "transaction") -> Iterator[str]:
    """Run pgbouncer in front of the server and yield the URL of the same database."""
    server = parse_dsn(server_url)
    port = free_port()
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"""
        [databases]
        * = host={server["host"]} port={server["port"]} user={server["user"]} pool_size={POOL_SIZE}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = {mode}
        server_round_robin = 1
        max_client_conn = 200
        """
    )
    as_user = ["-u", pwd.getpwnam("nobody").pw_name] if os.geteuid() == 0 else []
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([find_pgbouncer(), *as_user, str(settings)], stdout=log, stderr=log)
    url = f"postgresql://{server['user']}@127.0.0.1:{port}/{server['dbname']}"
    try:
        wait_for(lambda: process.poll() is not None or _answers(url), message="pgbouncer answers")
        assert process.poll() is None, (folder / "pgbouncer.log").read_text()
        if mode == "transaction":
            _open_all_server_connections(url)
        yield url
    finally:
        process.kill()
        process.wait()


def _open_all_server_connections(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(POOL_SIZE):
            connection = stack.enter_context(closing(psycopg2.connect(url)))
            stack.callback(connection.rollback)  # pgbouncer closes a server connection whose client left a transaction
            connection.cursor().execute("SELECT 1")  # has a server connection until the transaction ends


def _answers(url: str) -> bool:
    with suppress(psycopg2.OperationalError), closing(psycopg2.connect(url)):
        return True
    return False
