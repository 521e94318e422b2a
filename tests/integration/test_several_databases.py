"""Channels in several databases: verified together, and queried as one, as docs/scaling.md shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest

from common.channels import channel_of
from tests.support.folders import temporary_folder
from tests.support.pipeline import Database, Pipeline
from tests.support.waiting import wait_for
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.listings import LISTINGS
from tickpipe.simulator.server import Simulator

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
SYMBOLS = sorted(LISTINGS)[:24]
CHANNELS = 4


@pytest.fixture(scope="module")
def other_server() -> Iterator[PostgresServer]:
    with temporary_folder() as folder:
        server = PostgresServer(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def databases(pipeline: Pipeline, other_server: PostgresServer) -> Iterator[list[Database]]:
    """Two, each with half of the channels, and all prices of a run."""
    with ExitStack() as stack:
        second = stack.enter_context(closing(Database(other_server.url)))
        with Simulator(SimulatorConfig(rate=500, seed=1)) as simulator:
            consumers = [
                pipeline.consumer("--partitions", "0-1"),
                pipeline.consumer("--partitions", "2-3", DATABASE_URL=second.url),
            ]
            producer = pipeline.producer(simulator.url, "--partitions", str(CHANNELS), symbols=SYMBOLS)
            pipeline.wait_until_stored(500)
            wait_for(lambda: second.count() > 500)
            assert producer.stop() == 0
        streams = [f"prices:{{{number}}}{kind}" for number in range(CHANNELS) for kind in ("", ":feed")]

        def all_stored() -> bool:
            groups: list[Any] = [pipeline.redis.xinfo_groups(stream)[0] for stream in streams]
            return all(group["lag"] == group["pending"] == 0 for group in groups)

        wait_for(all_stored)
        assert [consumer.stop() for consumer in consumers] == [0, 0]
        yield [pipeline.database, second]
        second.empty()


def test_each_database_has_its_channels_and_verify_checks_all(pipeline: Pipeline, databases: list[Database]) -> None:
    for number, database in enumerate(databases):
        symbols = {symbol for (symbol,) in database.query("SELECT DISTINCT symbol FROM prices_real_time")}
        assert {channel_of(symbol, CHANNELS) // 2 for symbol in symbols} == {number}
    urls = " ".join(database.url for database in databases)
    verify = pipeline.processes.start("tickpipe", "verify", "--json", "--claim-idle", "0.5", DATABASE_URLS=urls)
    assert verify.wait() == 0, verify.said()
    verdicts = verify.json()
    assert [verdict["state"] for verdict in verdicts] == ["complete"] * CHANNELS
    assert len({verdict["database"] for verdict in verdicts}) == 2
    databases[1].query("DELETE FROM prices_real_time WHERE seq = 3")
    again = pipeline.processes.start("tickpipe", "verify", "--all", "--claim-idle", "0.5", DATABASE_URLS=urls)
    assert again.wait() == 1
    assert again.said().count("MISSING 3") == 2
    refused = pipeline.processes.start("tickpipe", "verify", "--repair", DATABASE_URLS=urls)
    assert refused.wait() == 2
    assert "repair one database at a time" in refused.said()
    sessions = databases[1].count("feed_states")
    for command in ("verify --all --repair --claim-idle 0.5 --partitions 2-3", "replay --partitions 2-3"):
        repair = pipeline.processes.start("tickpipe", *command.split(), DATABASE_URL=databases[1].url)
        assert repair.wait() == 0, repair.said()
    assert databases[1].count("feed_states") == sessions


def test_databases_that_have_one_name_are_all_checked(pipeline: Pipeline, databases: list[Database]) -> None:
    """Two schemas of one database, here: the first one lacks a price."""
    first, second = (f"{databases[0].url}&options=-csearch_path%3D{schema}" for schema in ("public", "other"))
    databases[0].query("DELETE FROM prices_real_time WHERE seq = 3")
    databases[0].query("CREATE SCHEMA other")
    try:
        assert pipeline.processes.start("tickpipe", "migrate", DATABASE_URL=second).wait() == 0
        verify = pipeline.processes.start("tickpipe", "verify", "--claim-idle", "0", DATABASE_URLS=f"{first} {second}")
        assert verify.wait() == 1
        assert verify.said().count("MISSING 3") == 2
    finally:
        databases[0].query("DROP SCHEMA other CASCADE")


def test_databases_are_named_by_urls(pipeline: Pipeline) -> None:
    verify = pipeline.processes.start("tickpipe", "verify", DATABASE_URLS="host=db1 dbname=ticks")
    assert verify.wait() == 2
    assert "DATABASE_URLS needs URLs that are separated by blanks" in verify.said()


def blocks() -> list[str]:
    """The SQL of the page's last section."""
    text = PAGE.read_text(encoding="utf-8").partition("## Several databases")[2]
    return re.findall(r"```sql\n(.*?)```", text, re.DOTALL)


def options(url: str) -> tuple[str, str, str]:
    """The host, the port and the name of a database."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    return query["host"][0], query.get("port", ["5432"])[0], parts.path.strip("/")


def test_databases_are_queried_as_one(databases: list[Database], other_server: PostgresServer) -> None:
    views, front, query = blocks()
    with closing(Database(databases[1].url)) as admin:
        admin.query("DROP DATABASE IF EXISTS front")
        admin.query("CREATE DATABASE front")
    for number, database in enumerate(databases, 1):
        host, port, name = options(database.url)
        front = front.replace(
            f"host 'db{number}.example', port '5432', dbname 'tickpipe'",
            f"host '{host}', port '{port}', dbname '{name}'",
        )
        for statement in views.replace("SELECT 1 AS", f"SELECT {number} AS").strip().split(";\n"):
            database.query(statement.rstrip(";").replace("CREATE VIEW", "CREATE OR REPLACE VIEW"))
    front = front.replace("user 'reader', password 'PASSWORD'", "user 'tickpipe', password 'x'")
    url = other_server.url.replace("/tickpipe?", "/front?")
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(front)
    with closing(Database(url)) as joined:
        found = joined.query(query)
        expected = sorted(row for database in databases for row in database.query(query.replace("shard, ", "")))
        assert found == expected
        assert len(found) == len(SYMBOLS)
        plan = "\n".join(line for (line,) in joined.query(f"EXPLAIN (VERBOSE) {query}"))
        sent = [line for line in plan.splitlines() if "Remote SQL" in line]
        assert len(sent) == 2, plan
        assert all("count(*)" in line and "GROUP BY" in line and "WHERE" in line for line in sent), plan
        candles = (
            "SELECT symbol, bucket, open, high, low, close, ticks FROM candles_1m WHERE symbol = '{}' ORDER BY bucket"
        )
        for symbol in SYMBOLS[:4]:
            own = databases[channel_of(symbol, CHANNELS) // 2]
            assert joined.query(candles.format(symbol)) == own.query(candles.format(symbol))
        assert joined.query("SELECT count(*) FROM feed_gaps") == [
            (sum(database.query("SELECT count(*) FROM feed_gaps")[0][0] for database in databases),)
        ]
    for database in databases:
        database.query("DROP VIEW shard_ticks, shard_candles_1m, shard_gaps")
    with closing(Database(databases[1].url)) as admin:
        admin.query("DROP DATABASE front WITH (FORCE)")
