"""Retention: old ticks may go, candles stay, and what went is on record (sql/0005)."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import NamedTuple

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.errors import ConfigurationError
from consumer import schema
from consumer.store import PriceStore

_UNITS = {"d": 1, "w": 7, "y": 365}


class Retention(NamedTuple):
    """What is set and what went. `ticks`: how long they are kept, None for ever (on plain PostgreSQL: nobody knows)."""

    scheduled: bool  # whether this database can run it by itself
    ticks: timedelta | None
    horizon: datetime | None  # ticks before it were dropped; None: none were
    expired: int

    def __str__(self) -> str:
        if self.ticks is not None:
            words = f"ticks are kept for {self.ticks.days} days; older ones are dropped daily"
        elif self.scheduled:
            words = "retention is off: no ticks are dropped"
        else:
            words = (
                "plain PostgreSQL has no scheduler: ticks are dropped whenever `tickpipe retention --ticks …` is run; "
                "let cron do so daily"
            )
        if self.horizon is not None:
            words += f"\n{self.expired:,} ticks before {self.horizon:%Y-%m-%d} UTC were dropped; their candles are kept"
        return words


def read_age(text: str, option: str = "--ticks") -> timedelta:
    """An age such as 90d, 12w or 2y. Raises ConfigurationError."""
    found = re.fullmatch(r"(\d{1,5})([dwy])", text.strip())
    if not found or int(found[1]) == 0:
        raise ConfigurationError(f"{option} {text!r} is no age: it looks like 90d, 12w or 2y")
    return timedelta(days=int(found[1]) * _UNITS[found[2]])


def keep(store: PriceStore, age: timedelta) -> None:
    """Drop ticks older than `age` now, each day in a transaction, and on TimescaleDB every day. Raises OutageError."""
    with store.autocommit() as connection, connection.cursor() as cursor:
        cursor.execute("CALL expire_ticks(now() - %s)", (age,))
    with store.transaction() as connection, connection.cursor() as cursor:
        if schema.is_hypertable(cursor):
            _remove_job(cursor)
            cursor.execute(
                "SELECT add_job('expire_ticks_job', interval '1 day', jsonb_build_object('ticks', %s::interval))",
                (age,),
            )


def switch_off(store: PriceStore) -> None:
    """Drop no more ticks. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        if schema.is_hypertable(cursor):
            _remove_job(cursor)


def look(store: PriceStore) -> Retention:
    """What is set now. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT nullif(candles_horizon(), '-infinity')")
        (horizon,) = cursor.fetchone() or (None,)
        cursor.execute("SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM feed_expired")
        (expired,) = cursor.fetchone() or (0,)
        scheduled = schema.is_hypertable(cursor)
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
