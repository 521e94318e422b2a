"""A real TimescaleDB for the tests: the server of TIMESCALEDB_URL, or a WebAssembly build from npm."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psycopg2
import pytest

from common.database.migrations import Migration, migrate, read_migrations
from common.errors import ConfigurationError
from tests.support.pipeline import Database

FOLDER = Path(__file__).resolve().parents[1] / "timescaledb"
#: For tests that need two open transactions. With the npm server they are skipped.
needs_two_backends = pytest.mark.skipif(
    "TIMESCALEDB_URL" not in os.environ, reason="the npm server has one backend: a transaction that waits blocks all"
)
#: Timeout of npm in seconds. A test has 180 s.
INSTALL_TIMEOUT = 120.0


def install_paused(
    database: Database, migrations: Sequence[Migration] | None = None, *, to_timescaledb: bool = False
) -> None:
    """Apply the schema, or these migrations, and pause the jobs before the commit, so that no scheduler runs them."""
    database.query("CREATE EXTENSION IF NOT EXISTS timescaledb")
    with closing(psycopg2.connect(database.url)) as connection, connection, connection.cursor() as cursor:
        migrate(connection, list(migrations or read_migrations()), to_timescaledb=to_timescaledb)
        cursor.execute(
            "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs WHERE hypertable_name != ''"
        )


def refresh_aggregate(
    database: Database, width: str, since: datetime | None = None, until: datetime | None = None
) -> None:
    """Refresh one aggregate over a span in one batch. TimescaleDB 2.28 and newer use many small batches by default."""
    has_options = database.query(
        "SELECT 1 FROM pg_proc WHERE proname = 'refresh_continuous_aggregate' AND 'options' = ANY (proargnames)"
    )
    options = """, options => '{"buckets_per_batch": 0}'""" if has_options else ""
    database.query(f"CALL refresh_continuous_aggregate('aggregate_{width}', %s, %s{options})", since, until)


class GivenServer:
    """A running server, by the URL of one of its databases. The role must be a superuser."""

    def __init__(self, url: str) -> None:
        self._url = url

    def close(self) -> None:
        """Do nothing: the server was not started here."""

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database. It is dropped at the end."""
        name = f"tickpipe_{secrets.token_hex(6)}"
        with closing(Database(self._url)) as admin:
            admin.query(f"CREATE DATABASE {name} TEMPLATE template0")  # template1 may already have the extension
            try:
                yield re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\1/{name}", self._url)
            finally:
                admin.query(f"DROP DATABASE {name} WITH (FORCE)")


class NpmServer:
    """TimescaleDB 2.23 in a Node process, from tests/timescaledb. It serves one database at a time.

    All connections share one backend. SET therefore applies to all connections, and a transaction blocks the others.
    Timeouts do not work, pg_stat_activity is empty, COPY crashes the server, and jobs run only by `CALL run_job(id)`.
    """

    def __init__(self) -> None:
        """Raises ConfigurationError if npm cannot install it."""
        _install()
        self._process = _start()

    def close(self) -> None:
        """Stop the server. All its data is in memory."""
        self._process.kill()
        self._process.communicate()

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database. Its connections are closed and it is dropped at the end."""
        url = self._read_url()
        if not url:  # the previous test has killed it
            self.close()
            self._process = _start()
            url = self._read_url()
        try:
            yield url
        finally:
            assert self._process.stdin
            with suppress(BrokenPipeError):
                self._process.stdin.write("the next one\n")  # created in the background
                self._process.stdin.flush()

    def _read_url(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["node", "server.mjs"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _install() -> None:
    """Run `npm ci` unless the installed packages match the lock file."""
    lock, done = FOLDER / "package-lock.json", FOLDER / "node_modules/.package-lock.json"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise ConfigurationError("Node.js with npm is not installed")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one xdist worker installs, the others wait
        if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
            return
        try:
            subprocess.run(
                [npm, "ci", "--loglevel=error"],
                cwd=FOLDER,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            words = " ".join(error.stderr.replace("npm error", "").split())
            raise ConfigurationError(f"`npm ci` in {FOLDER} fails: {words[:200]}") from None
        except subprocess.TimeoutExpired:
            raise ConfigurationError(f"`npm ci` in {FOLDER} takes more than {INSTALL_TIMEOUT:g} s") from None
