"""Addresses of the embedded servers, and how to find those that run. It needs no extra."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal

import platformdirs

from common import libpq
from common.settings import Secret, absolute_folder
from tickpipe.local.servers.folders import socket_folder

#: Major version of PostgreSQL's data. pyproject.toml pins the wheel to it.
POSTGRES_MAJOR = 18
#: Seconds for a connection to a socket of this machine.
_TIMEOUT = 2.0

Kind = Literal["demo", "live"]
_KINDS: tuple[Kind, ...] = ("live", "demo")


def default_data_dir(kind: Kind) -> Path:
    """The default data folder. Simulated (`demo`) and real (`live`) prices never share one."""
    if sys.platform != "win32" and os.geteuid() == 0:
        return Path("/var/lib/tickpipe") / kind  # the account `nobody` cannot reach /root
    return absolute_folder(lambda: platformdirs.user_data_path("tickpipe", appauthor=False), "--data-dir") / kind


def valkey_folder(data_dir: Path) -> Path:
    """The folder of Valkey in a data folder."""
    return data_dir / "valkey"


def postgres_folder(data_dir: Path) -> Path:
    """The folder of PostgreSQL in a data folder."""
    return data_dir / f"postgres-{POSTGRES_MAJOR}"


def valkey_url(sockets: Path) -> str:
    """A redis-py URL for the Valkey with its socket in this folder."""
    return f"unix://{sockets}/valkey.sock"


def postgres_url(sockets: Path) -> str:
    """A libpq URL for the PostgreSQL with its socket in this folder. The port is named: $PGPORT would change it."""
    return f"postgresql:///tickpipe?host={sockets}&port=5432&application_name={libpq.EMBEDDED}&user=tickpipe"


def running_servers(environ: Mapping[str, str]) -> tuple[Secret | None, Secret | None]:
    """REDIS_URL and DATABASE_URL of the embedded servers that answer on this machine; None for one that does not.

    Real prices come first: the servers of simulated prices count only if no server of real prices answers.
    `environ`: TICKPIPE_DATA_DIR, if `tickpipe up` uses it.
    """
    for kind in _KINDS:
        data_dir = _data_dir(environ, kind)
        redis, postgres = socket_folder(valkey_folder(data_dir)), socket_folder(postgres_folder(data_dir))
        redis_url = Secret(valkey_url(redis)) if _answers(redis / "valkey.sock") else None
        database_url = Secret(postgres_url(postgres)) if _answers(postgres / ".s.PGSQL.5432") else None
        if redis_url or database_url:
            return redis_url, database_url
    return None, None


def _data_dir(environ: Mapping[str, str], kind: Kind) -> Path:
    given = environ.get("TICKPIPE_DATA_DIR")
    if not given:
        return default_data_dir(kind)
    return absolute_folder(lambda: Path(given), "TICKPIPE_DATA_DIR") / kind


def _answers(path: Path) -> bool:
    """Whether a server of this user answers at the socket. A long path is in /tmp, where others can make folders."""
    try:
        if os.geteuid() not in {0, path.parent.stat().st_uid}:
            return False
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(_TIMEOUT)
            client.connect(str(path))
    except (OSError, AttributeError):  # Windows has no AF_UNIX
        return False
    return True
