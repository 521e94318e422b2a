"""Objects in another schema, or temporary ones, do not capture a name that our SQL uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import psycopg2
import pytest

from common.settings import Secret
from consumer.schema import apply
from consumer.store import PriceStore
from tests.support.pipeline import Database

#: Tables with the names of those that retention writes.
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
def home(request: pytest.FixtureRequest) -> Database:
    """A database with the schema: plain PostgreSQL, or TimescaleDB."""
    if request.param == "plain":
        plain: Database = request.getfixturevalue("fresh_database")
        return plain
    timescale: Database = request.getfixturevalue("timescale")
    with closing(PriceStore(Secret(timescale.url))) as store:
        apply(store)
    return timescale


@pytest.mark.parametrize("place", ["schema of the owner's name", "temporary schema"])
def test_retention_uses_our_tables_beside_others_of_the_same_names(home: Database, place: str) -> None:
    insert_old_tick(home)
    if place == "temporary schema":
        schema, kind = "", "TEMP TABLE"
    else:
        owner = home.query("SELECT quote_ident(current_user)")[0][0]
        home.query(f"CREATE SCHEMA {owner}")
        schema, kind = f"{owner}.", "TABLE"
    for trap in TRAPS:
        home.query(trap.format(kind=kind, schema=schema))
    home.query("CALL public.expire_ticks('2021-01-01')")
    assert home.query("SELECT session, first_seq, last_seq FROM public.feed_expired") == [(1, 1, 1)]
    assert home.query("SELECT count(*) > 0 FROM public.candles_kept") == [(True,)]
    assert home.query("SELECT count(*) FROM public.prices_real_time") == [(0,)]


def test_routines_that_look_names_up_late_have_a_path_of_ours_alone(home: Database) -> None:
    for name, settings in home.query(PATHS):
        if settings is None:  # called by a routine that has a path; or it commits, and names its schema instead
            assert name in {"drop_ticks", "expire_ticks", "expire_ticks_job"}
            continue
        path = settings.removeprefix("search_path=").split(", ")
        assert (path[0], path[-1]) == ("public", "pg_temp")
        assert '"$user"' not in path


def test_no_routine_runs_with_the_rights_of_its_owner(home: Database) -> None:
    ours = (
        "SELECT count(*) FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace AND {} "
        "AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')"
    )
    assert home.query(ours.format("prosecdef")) == [(0,)]
    public = "prokind = 'p' AND has_function_privilege('public', p.oid, 'EXECUTE')"
    assert home.query(ours.format(public)) == [(0,)]


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
