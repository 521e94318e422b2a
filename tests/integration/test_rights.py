"""A role without a right: exit status 2 at startup; a log line and a retry at runtime."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from common.database.client import DatabaseClient
from common.errors import ConfigurationError, DatabaseOutageError, DatabasePermissionError
from common.settings import Secret
from consumer.tables import PRICES
from consumer.writer import Stored, Writer
from tests.support.capture import make_events, ticks
from tests.support.pipeline import Database, Pipeline, ServerPair
from tests.support.sessions import StoredSession, entry
from tests.support.waiting import wait_for

SESSION = 1_760_000_000_000_000
MakeRole = Callable[[], str]


@pytest.fixture
def role(new_role: MakeRole, fresh_database: Database) -> str:
    """A role with the rights that a consumer needs."""
    name = new_role()
    fresh_database.query(f"GRANT SELECT ON tickpipe_migrations TO {name}")
    fresh_database.query(f"GRANT INSERT ON prices_real_time, feed_events, dead_letters TO {name}")
    return name


def url_of(role: str, database: Database, servers: ServerPair) -> str:
    ((name,),) = database.query("SELECT current_database()")
    return servers.database_url(name, user=role)


#: A statement that revokes a right or changes a table, and part of the resulting error.
MISSING = [
    ("REVOKE INSERT ON prices_real_time FROM {role}", "permission denied for table prices_real_time"),
    ("REVOKE INSERT ON feed_events FROM {role}", "permission denied for table feed_events"),
    ("REVOKE INSERT ON dead_letters FROM {role}", "permission denied for table dead_letters"),
    ("ALTER TABLE feed_events ENABLE ROW LEVEL SECURITY", "insert into feed_events: add a policy"),
    (
        "ALTER TABLE dead_letters ENABLE ROW LEVEL SECURITY; CREATE POLICY r ON dead_letters FOR SELECT USING (true)",
        "insert into dead_letters: add a policy",
    ),
    ("ALTER ROLE {role} SET default_transaction_read_only = on", "set default_transaction_read_only = off"),
    ("REVOKE ALL ON SCHEMA public FROM PUBLIC", "GRANT USAGE ON SCHEMA"),
    ("ALTER TABLE feed_events RENAME COLUMN detail TO other", "the schema is missing"),
]


@pytest.mark.parametrize(("change", "words"), MISSING, ids=[change for change, _ in MISSING])
def test_consumer_without_the_right_to_store_exits_at_startup(
    role: str, fresh_pipeline: Pipeline, change: str, words: str
) -> None:
    pipeline = fresh_pipeline
    pipeline.append(list(ticks(make_events(3), SESSION)))
    pipeline.database.query(change.format(role=role))
    consumer = pipeline.consumer(DATABASE_URL=url_of(role, pipeline.database, pipeline.servers))
    assert consumer.wait() == 2
    (line,) = consumer.last_log_line()
    assert words in line
    assert pipeline.prices.backlog().lag in {0, 3}  # no entry was read
    assert "Traceback" not in consumer.said()


def test_row_policy_that_allows_inserts_is_enough(role: str, fresh_database: Database, servers: ServerPair) -> None:
    for table in ("prices_real_time", "feed_events", "dead_letters"):
        fresh_database.query(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        fresh_database.query(f"CREATE POLICY write ON {table} FOR INSERT TO {role} WITH CHECK (true)")
    with closing(DatabaseClient(Secret(url_of(role, fresh_database, servers)))) as store:
        Writer(store).check_rights()


@pytest.mark.parametrize(
    ("take", "give", "words"),
    [
        (
            "REVOKE INSERT ON {table} FROM {role}", "GRANT INSERT ON {table} TO {role}",
            "permission denied for table {table}",
        ),
        (
            "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
            'row-level security policy for table "{table}"',
        ),
    ],
    ids=["right", "row security"],
)  # fmt: skip
@pytest.mark.parametrize("table", ["prices_real_time", "dead_letters"])
def test_right_revoked_at_runtime_is_logged_and_waited_for(
    role: str, fresh_database: Database, servers: ServerPair, table: str, take: str, give: str, words: str
) -> None:
    session = StoredSession(DatabaseClient(Secret(fresh_database.url)), SESSION / 1e6)
    entries = [entry(session.tick(1)._asdict()), entry(session.tick(2, price="dear")._asdict())]
    with closing(DatabaseClient(Secret(url_of(role, fresh_database, servers)))) as store:
        Writer(store).check_rights()
        fresh_database.query(take.format(table=table, role=role))
        for bisect in (False, True):
            with pytest.raises(DatabaseOutageError) as caught:
                Writer(store).insert_batch(PRICES, "prices", entries, bisect=bisect)
            assert words.format(table=table) in str(caught.value)
            assert "INSERT on prices_real_time, feed_events and dead_letters" in str(caught.value)
        assert fresh_database.count() == fresh_database.count("dead_letters") == 0
        fresh_database.query(give.format(table=table, role=role))
        assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(1, 0, 1)


def test_consumer_continues_after_its_right_is_restored(role: str, fresh_pipeline: Pipeline) -> None:
    pipeline = fresh_pipeline
    events = make_events(20)
    consumer = pipeline.consumer(DATABASE_URL=url_of(role, pipeline.database, pipeline.servers))
    consumer.wait_until_said("reads prices")
    pipeline.database.query(f"REVOKE INSERT ON prices_real_time FROM {role}")
    pipeline.append(list(ticks(events, SESSION)))
    consumer.wait_until_said("permission denied for table prices_real_time")
    pipeline.database.query(f"GRANT INSERT ON prices_real_time TO {role}")
    wait_for(pipeline.nothing_pending)
    assert consumer.stop() == 0
    pipeline.assert_stored_exactly(events)


@pytest.mark.parametrize("command", [["verify"], ["status"], ["dead-letters", "list"], ["retention"]])
def test_command_without_a_right_is_a_configuration_error(
    new_role: MakeRole, fresh_pipeline: Pipeline, command: list[str]
) -> None:
    pipeline, role = fresh_pipeline, new_role()
    running = pipeline.processes.start(
        "tickpipe", *command, DATABASE_URL=url_of(role, pipeline.database, pipeline.servers)
    )
    assert running.wait() == 2
    assert "the role in DATABASE_URL lacks a right: permission denied for" in running.last_log_line()[-1]


def test_missing_right_is_a_permission_error(role: str, fresh_database: Database, servers: ServerPair) -> None:
    with closing(DatabaseClient(Secret(url_of(role, fresh_database, servers)))) as store:
        with pytest.raises(DatabasePermissionError) as caught, store.transaction() as connection:
            connection.cursor().execute("SELECT FROM feed_events")
        assert isinstance(caught.value, ConfigurationError)
        assert store.ping()
