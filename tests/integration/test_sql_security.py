"""Objects in another schema, or temporary objects, cannot capture a name used by tickpipe's SQL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import psycopg2
import pytest

from common.database.client import DatabaseClient
from common.database.migrations import apply
from common.settings import Secret
from tests.support.pipeline import Database

#: Traps with the names of tickpipe's tables and procedures.
TRAPS = [
    "CREATE {kind} {schema}feed_expired (LIKE public.feed_expired INCLUDING ALL)",
    "CREATE {kind} {schema}candles_kept (LIKE public.candles_kept INCLUDING ALL)",
    "CREATE {kind} {schema}candles_horizon (LIKE public.candles_horizon INCLUDING ALL)",
]

PATHS = """
    SELECT p.proname, array_to_string(p.proconfig, ' ') FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
    WHERE p.pronamespace = 'public'::regnamespace AND l.lanname = 'plpgsql'
      AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


def insert_old_tick(database: Database) -> None:
    database.query(
        "INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq) "
        "VALUES ('2020-01-01 10:00:00+00', 'A', 1, '2020-01-01 10:00:00+00', 1, 1)"
    )


@pytest.fixture(params=["plain", "hypertable"])
def backend(request: pytest.FixtureRequest) -> Database:
    """A database with the schema: plain PostgreSQL, or TimescaleDB."""
    if request.param == "plain":
        plain: Database = request.getfixturevalue("fresh_database")
        return plain
    timescale: Database = request.getfixturevalue("timescale")
    with closing(DatabaseClient(Secret(timescale.url))) as store:
        apply(store)
    return timescale


@pytest.mark.parametrize("place", ["schema of the owner's name", "temporary schema"])
def test_retention_uses_our_tables_despite_tables_with_the_same_names(backend: Database, place: str) -> None:
    insert_old_tick(backend)
    if place == "temporary schema":
        schema, kind = "", "TEMP TABLE"
    else:
        owner = backend.query("SELECT quote_ident(current_user)")[0][0]
        backend.query(f"CREATE SCHEMA {owner}")
        schema, kind = f"{owner}.", "TABLE"
    for trap in TRAPS:
        backend.query(trap.format(kind=kind, schema=schema))
    backend.query("CALL public.expire_ticks('2021-01-01')")
    assert backend.query("SELECT session, first_seq, last_seq FROM public.feed_expired") == [(1, 1, 1)]
    assert backend.query("SELECT count(*) > 0 FROM public.candles_kept") == [(True,)]
    assert backend.query("SELECT count(*) FROM public.prices_real_time") == [(0,)]


def test_late_binding_routines_have_a_fixed_search_path(backend: Database) -> None:
    for name, settings in backend.query(PATHS):
        if settings is None:  # its caller sets the search path, or it commits and names its schema instead
            assert name in {"drop_ticks", "expire_ticks", "expire_ticks_job"}
            continue
        path = settings.removeprefix("search_path=").split(", ")
        assert (path[0], path[-1]) == ("public", "pg_temp")
        assert '"$user"' not in path


def test_only_triggers_are_security_definer_and_only_the_owner_may_use_them(backend: Database) -> None:
    ours = (
        "SELECT proname FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace AND {} "
        "AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e') ORDER BY 1"
    )
    triggers = [("forget_feed_events",), ("note_feed_events",), ("note_verified_session",)]
    assert backend.query(ours.format("prosecdef")) == triggers
    assert backend.query(ours.format("prosecdef AND prorettype = 'trigger'::regtype")) == triggers
    public = "(prokind = 'p' OR prosecdef) AND has_function_privilege('public', p.oid, 'EXECUTE')"
    assert backend.query(ours.format(public)) == []


def test_another_role_can_neither_drop_ticks_nor_change_them(
    fresh_database: Database, new_role: Callable[[], str]
) -> None:
    role = new_role()
    fresh_database.query(f"SET ROLE {role}")
    for statement in (
        "CALL expire_ticks(now() - interval '2 days')",
        "CALL drop_ticks(now())",
        "SELECT * FROM prices_real_time",
        "INSERT INTO feed_expired VALUES (1, 1, 1)",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            fresh_database.query(statement)
    fresh_database.query("RESET ROLE")
