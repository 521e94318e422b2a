"""Retention with an archive: old ticks are exported, the files are read again, and only then the ticks are dropped.

Each day is dropped in one transaction that keeps writers out and compares the ticks with the archive once more. So a
tick that arrives after the export is not dropped before it is archived.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.database.client import DatabaseClient
from common.errors import OutageError
from tickpipe.files.export import ExportResult, MismatchError, export, read_contents
from tickpipe.files.partition import Partition
from tickpipe.files.storage import Storage
from tickpipe.files.ticks import Contents, count_before
from tickpipe.maintenance import retention
from tickpipe.progress import ProgressCallback

#: The oldest possible time of a tick.
_FIRST = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
#: Exports until ticks stop arriving for days that are to be dropped.
ATTEMPTS = 3


def archive(
    store: DatabaseClient,
    storage: Storage,
    age: timedelta,
    result: ExportResult,
    progress: ProgressCallback = lambda *_: None,
) -> None:
    """Archive ticks older than `age`, then drop them. Adds to `result`. Nothing is dropped that is not archived.

    The scheduled job of TimescaleDB is removed, since it would drop ticks without the archive. Raises OutageError,
    MismatchError, ConfigurationError.
    """
    retention.switch_off(store)
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT date_trunc('day', now() - %s, 'UTC')", (age,))
        (until,) = cursor.fetchone() or (_FIRST,)
    for _ in range(ATTEMPTS):
        export(store, storage, _FIRST, until, "parquet", result, progress)
        check(storage, result.contents, progress)
        if drop(store, until, {partition: wanted for partition, (wanted, _) in result.contents.items()}, progress):
            return
    raise OutageError("ticks of days that are to be dropped keep arriving: the rest is dropped by the next run")


def check(storage: Storage, contents: dict[Partition, tuple[Contents, Contents]], progress: ProgressCallback) -> None:
    """Read all files of the archive. Raises MismatchError, ConfigurationError for a damaged file, OutageError."""
    for done, (partition, (_, expected)) in enumerate(contents.items()):
        progress(done, len(contents), "checking the archive")
        path = partition.path("parquet")
        found = read_contents(storage, path, everything=True)
        if found != expected:
            raise MismatchError(
                f"{path}: it has {found.rows:,} ticks, but {expected.rows:,} were written: nothing was dropped"
            )


def drop(
    store: DatabaseClient, until: datetime, archived: dict[Partition, Contents], progress: ProgressCallback
) -> bool:
    """Drop the ticks before a midnight, day by day. Returns False as soon as a day has other ticks than `archived`."""
    while True:
        with store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLE prices_real_time IN SHARE ROW EXCLUSIVE MODE")
            end = _end_of_first_day(cursor, until)
            progress(0, 0, f"dropping ticks before {end:%Y-%m-%d}")
            if any(archived.get(partition) != found for partition, found in count_before(cursor, end).items()):
                return False
            cursor.execute("CALL expire_day(%s)", (end,))
        if end >= until:
            return True


def _end_of_first_day(cursor: Cursor, until: datetime) -> datetime:
    """The end of the oldest day that has ticks, as in the procedure expire_ticks."""
    cursor.execute(
        "SELECT least(%s, date_trunc('day', first_tick(candles_horizon()), 'UTC') + interval '24 hours')", (until,)
    )
    (end,) = cursor.fetchone() or (until,)
    found: datetime = end
    return found
