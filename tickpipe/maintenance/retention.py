"""Retention: drops old ticks, keeps their candles, and records what was dropped (sql/0005_retention.sql)."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import NamedTuple

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.database import migrations
from common.database.client import DatabaseClient
from common.errors import ConfigurationError

_UNITS = {"d": 1, "w": 7, "y": 365}


class Retention(NamedTuple):
    """The current policy. `ticks` is the age to keep: None if nothing is scheduled, as always on plain PostgreSQL."""

    scheduled: bool  # whether the database has a scheduler
    ticks: timedelta | None
    horizon: datetime | None  # ticks before this time were dropped; None if none
    expired: int  # number of dropped ticks

    def __str__(self) -> str:
        if self.ticks is not None:
            text = f"ticks are kept for {self.ticks.days} days; older ones are dropped daily"
        elif self.scheduled:
            text = "retention is off: no ticks are dropped"
        else:
            text = (
                "plain PostgreSQL has no scheduler: ticks are dropped only when `tickpipe retention --ticks …` runs. "
                "Run it daily from cron"
            )
        if self.horizon is not None:
            text += f"\n{self.expired:,} ticks before {self.horizon:%Y-%m-%d} UTC were dropped; their candles are kept"
        return text


def read_age(text: str, option: str = "--ticks") -> timedelta:
    """Parse an age such as 90d, 12w or 2y. Raises ConfigurationError."""
    found = re.fullmatch(r"(\d{1,5})([dwy])", text.strip())
    if not found or int(found[1]) == 0:
        raise ConfigurationError(f"{option} {text!r} is not an age. Examples: 90d, 12w, 2y")
    return timedelta(days=int(found[1]) * _UNITS[found[2]])


def keep(store: DatabaseClient, age: timedelta) -> None:
    """Drop ticks older than `age` now, a transaction per day, and on TimescaleDB every day. Raises OutageError."""
    with store.autocommit() as connection, connection.cursor() as cursor:
        cursor.execute("CALL expire_ticks(now() - %s)", (age,))
    with store.transaction() as connection, connection.cursor() as cursor:
        if migrations.is_hypertable(cursor):
            _remove_job(cursor)
            cursor.execute(
                "SELECT add_job('expire_ticks_job', interval '1 day', jsonb_build_object('ticks', %s::interval))",
                (age,),
            )


def switch_off(store: DatabaseClient) -> None:
    """Stop dropping ticks. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        if migrations.is_hypertable(cursor):
            _remove_job(cursor)


def look(store: DatabaseClient) -> Retention:
    """The current policy. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT nullif(candles_horizon(), '-infinity')")
        (horizon,) = cursor.fetchone() or (None,)
        cursor.execute("SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM feed_expired")
        (expired,) = cursor.fetchone() or (0,)
        scheduled = migrations.is_hypertable(cursor)
        ticks = None
        if scheduled:
            cursor.execute(f"SELECT (config ->> 'ticks')::interval {_JOB}")
            (ticks,) = cursor.fetchone() or (None,)
    return Retention(scheduled, ticks, horizon, expired)


def _remove_job(cursor: Cursor) -> None:
    cursor.execute(f"SELECT delete_job(job_id) {_JOB}")


_JOB = (
    "FROM timescaledb_information.jobs WHERE proc_name = 'expire_ticks_job' "
    "AND to_regproc(format('%I.%I', proc_schema, proc_name)) = to_regproc('expire_ticks_job')"
)
