"""A PostgreSQL primary with a standby that streams from it by a delayed link."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from common.database.client import DatabaseClient
from common.database.migrations import apply
from common.settings import Secret
from tests.support.delayed_link import DelayedLink
from tests.support.folders import temporary_folder
from tests.support.pipeline import Database
from tests.support.waiting import wait_for
from tickpipe.local.servers.postgres import PostgresServer

#: The standby's name in synchronous_standby_names.
NAME = "standby"


class StandbyServer(PostgresServer):
    """A copy of a primary that streams what follows."""

    def __init__(self, folder: Path, primary: PostgresServer, port: int) -> None:
        """`port`: where the primary is reached for streaming."""
        conninfo = f"host=127.0.0.1 port={port} user=tickpipe application_name={NAME}"
        super().__init__(folder, settings={"primary_conninfo": conninfo})
        self._primary = primary

    def _prepare(self, package: Path) -> None:
        if not self._data.exists():
            program = package / "pginstall/bin/pg_basebackup"
            source = ("--host", self._primary._socket_folder, "--port", "5432", "--username", "tickpipe")
            self._run(program, "--pgdata", self._data, *source, "--checkpoint", "fast")
            (self._data / "standby.signal").touch()


class DatabasePair:
    """Both servers. `url` names both, and leads to the one that can be written to."""

    def __init__(self, primary: PostgresServer, standby: StandbyServer, link: DelayedLink, delay: float) -> None:
        self.primary = primary
        self.standby: PostgresServer = standby
        self.link = link
        self._delay = delay
        hosts = f"{primary._socket_folder},{standby._socket_folder}"
        self.url = f"postgresql:///tickpipe?host={hosts}&port=5432,5432&user=tickpipe&target_session_attrs=read-write"

    def is_streaming(self, state: str) -> bool:
        """Whether the standby streams in this state, `sync` or `async`."""
        with closing(Database(self.primary.url)) as database:
            return database.query("SELECT state, sync_state FROM pg_stat_replication") == [("streaming", state)]

    def wait_for_standby(self) -> None:
        """Make each commit on the primary wait for the standby."""
        set_synchronous(self.primary, NAME)
        wait_for(lambda: self.is_streaming("sync"), message="the standby is synchronous")

    def cut_power(self) -> None:
        """End the primary together with what is on the way to the standby."""
        self.link.cut()
        self.primary.kill()

    def promote(self) -> None:
        """Make the standby the primary."""
        with closing(Database(self.standby.url)) as database:
            database.query("SELECT pg_promote()")

    def rebuild(self) -> None:
        """Make the old primary a new standby of the promoted one."""
        primary, folder = self.standby, self.primary.folder
        shutil.rmtree(folder / "data")
        self.link = DelayedLink(str(primary._socket_folder / ".s.PGSQL.5432"), self._delay, b"replication")
        self.link.connect()
        standby = StandbyServer(folder, primary, self.link.port)
        standby.start()
        self.primary, self.standby = primary, standby
        wait_for(lambda: self.is_streaming("async"), message="the new standby streams")

    def stop(self) -> None:
        """Stop both servers."""
        self.standby.stop()
        self.primary.stop()
        self.link.cut()


def set_synchronous(server: PostgresServer, names: str) -> None:
    """Set synchronous_standby_names on a primary or a standby."""
    with closing(Database(server.url)) as database:
        database.query(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        database.query("SELECT pg_reload_conf()")
        setting = "SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names'"
        wait_for(lambda: database.query(setting) == [(names,)], message=f"waits for {names!r}")


@contextmanager
def database_pair(delay: float = 0.0) -> Iterator[DatabasePair]:
    """Start both, with tickpipe's tables. `delay`: seconds on the link to the standby. Call from the main thread."""
    with temporary_folder() as folder:
        primary = PostgresServer(folder / "a" / "postgres-18")
        try:
            primary.start()
            with closing(DatabaseClient(Secret(primary.url))) as store:
                apply(store)
            socket = str(primary._socket_folder / ".s.PGSQL.5432")
            with DelayedLink(socket, delay, b"replication") as link:
                standby = StandbyServer(folder / "b" / "postgres-18", primary, link.port)
                pair = DatabasePair(primary, standby, link, delay)
                try:
                    standby.start()
                    wait_for(lambda: pair.is_streaming("async"), message="the standby streams")
                    yield pair
                finally:
                    pair.stop()
        finally:
            primary.stop()
