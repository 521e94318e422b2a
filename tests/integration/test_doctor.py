"""`tickpipe doctor` and the sizes of `tickpipe status`: each finding made real on a server that is set so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis

from common.database import migrations
from common.database.client import DatabaseClient
from common.settings import Secret
from common.streams.group import ConsumerGroup
from tests.support.homes import temporary_home
from tests.support.pipeline import GROUP, Database, Pipeline
from tests.support.told import Told
from tests.support.waiting import wait_for
from tickpipe.inspect.doctor import CheckContext, Finding, examine
from tickpipe.inspect.sizes import SizeProbe
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer

Findings = dict[str, Finding]


@contextmanager
def patient(redis_url: str, database_url: str, spool: Path, *, ahead: float = 0.0) -> Iterator[CheckContext]:
    """`ahead`: seconds that this machine's clock is."""
    client = redis.Redis.from_url(redis_url)
    with closing(DatabaseClient(Secret(database_url))) as store, closing(client):
        streams = [ConsumerGroup(client, key, GROUP, "doctor") for key in ("prices", "prices:feed")]
        measure = SizeProbe(client, ["prices", "prices:feed"], store, spool)
        yield CheckContext(client, streams, store, measure, lambda: "key", lambda: int((time.time() + ahead) * 1e6))


@pytest.fixture
def look(pipeline: Pipeline, tmp_path: Path) -> Callable[..., Findings]:
    def look(redis_url: str = "", database_url: str = "", **other: float) -> Findings:
        redis_url, database_url = redis_url or pipeline.servers.valkey.url, database_url or pipeline.database.url
        with patient(redis_url, database_url, tmp_path / "spool", **other) as found:
            return {finding.what: finding for finding in examine(found)}

    return look


def states(findings: Findings, state: str) -> list[str]:
    return [what for what, finding in findings.items() if finding.state == state]


def told(findings: Findings, words: str) -> Finding:
    """The one finding that says so."""
    (found,) = [finding for what, finding in findings.items() if words in what]
    return found


def test_servers_set_as_ours_are_well(look: Callable[..., Findings]) -> None:
    assert states(look(), "BAD") == []


@pytest.mark.parametrize(
    ("settings", "words", "advice"),
    [
        ({"appendonly": "no"}, "Redis: appendonly no", "CONFIG SET appendonly yes"),
        ({"appendfsync": "everysec"}, "Redis: appendfsync everysec", "CONFIG SET appendfsync always"),
        ({"maxmemory-policy": "volatile-lru"}, "Redis: maxmemory-policy volatile-lru", "noeviction"),
        ({"maxmemory": "1100000"}, "of 1.1 MB", "raise maxmemory"),
    ],
)
def test_a_redis_that_is_set_wrong(
    look: Callable[..., Findings], settings: dict[str, str], words: str, advice: str
) -> None:
    with temporary_home() as home:
        server = ValkeyServer(home / "valkey", settings=settings)
        server.start()
        try:
            found = look(redis_url=server.url)
        finally:
            server.stop()
    assert len(states(found, "BAD")) == 1
    assert told(found, words).state == "BAD"
    assert advice in told(found, words).advice


def test_a_database_that_is_set_wrong(look: Callable[..., Findings]) -> None:
    with temporary_home() as home:
        server = PostgresServer(home / "postgres-18", settings={"fsync": "off", "full_page_writes": "off"})
        server.start()
        try:
            with closing(DatabaseClient(Secret(server.url))) as store:
                migrations.apply(store)
            found = look(database_url=server.url)
        finally:
            server.stop()
    assert sorted(states(found, "BAD")) == ["database: fsync off", "database: full_page_writes off"]
    assert "set fsync = on" in told(found, "database: fsync").advice


def test_commits_that_others_may_lose_and_the_time_zone_are_told(
    pipeline: Pipeline, new_role: Callable[[], str], look: Callable[..., Findings]
) -> None:
    role = new_role()
    pipeline.database.query(f"ALTER ROLE {role} SET synchronous_commit = off")
    pipeline.database.query(f"ALTER ROLE {role} SET TimeZone = 'Asia/Tokyo'")
    url = pipeline.database.url.replace("user=tickpipe", f"user={role}")
    found = look(database_url=url)
    assert told(found, "synchronous_commit off").state == "note"
    assert told(found, "time zone Asia/Tokyo").state == "ok"


def test_what_may_not_be_read_is_a_note_and_the_rest_is_looked_at(
    pipeline: Pipeline, new_role: Callable[[], str], look: Callable[..., Findings]
) -> None:
    url = pipeline.database.url.replace("user=tickpipe", f"user={new_role()}")
    rights = ["~*", "+@all", "-config", "-info", "-time"]
    pipeline.redis.execute_command("ACL", "SETUSER", "guest", "on", ">word", *rights)  # type: ignore[no-untyped-call]
    try:
        found = look(redis_url=f"{pipeline.servers.valkey.url}?username=guest&password=word", database_url=url)
    finally:
        pipeline.redis.execute_command("ACL", "DELUSER", "guest")  # type: ignore[no-untyped-call]
    assert states(found, "BAD") == []
    hidden = {what: each for what, each in found.items() if "cannot be read" in each.advice}
    assert set(hidden) == {
        "Redis: TYPE and TIME",
        "Redis: INFO: version, persistence, memory",
        "Redis: appendonly yes, appendfsync always, maxmemory-policy noeviction",
        "database: schema and jobs",
        "database: feed and sizes",
    }
    assert all(each.state == "note" and "look yourself" in each.advice for each in hidden.values())
    assert told(found, "prices: no group holds back").state == "ok"
    assert told(found, "database: fsync on").state == "ok"


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_clocks_that_differ(look: Callable[..., Findings], ahead: float) -> None:
    found = look(ahead=ahead)
    assert len(states(found, "BAD")) == 2
    for place in ("Redis", "database"):
        assert told(found, f"{place}: its clock and this machine's differ by 3600.0 s").state == "BAD"


def test_a_schema_that_is_missing_or_not_the_one_applied(
    empty_pipeline: Pipeline, look: Callable[..., Findings]
) -> None:
    url = empty_pipeline.database.url
    assert look(database_url=url)["schema"].advice == "run `tickpipe migrate`"
    with closing(DatabaseClient(Secret(url))) as store:
        migrations.apply(store)
    assert states(look(database_url=url), "BAD") == []
    empty_pipeline.database.query("UPDATE tickpipe_migrations SET checksum = 'x' WHERE name = '0003_feed.sql'")
    assert states(look(database_url=url), "BAD") == ["files of sql/ that changed since: 0003_feed.sql"]
    empty_pipeline.database.query("DELETE FROM tickpipe_migrations WHERE name = '0008_backfill.sql'")
    assert "schema" in states(look(database_url=url), "BAD")


def test_a_backlog_that_nobody_reads(pipeline: Pipeline, look: Callable[..., Findings]) -> None:
    pipeline.prices.append([{"n": "1"}])
    found = look()
    assert states(found, "BAD") == ["prices: 0 consumers in group timescale, 1 entries left"]
    assert told(found, "prices:feed: 0 consumers").state == "note"


def test_a_consumer_that_was_killed_is_not_counted_among_the_others(
    pipeline: Pipeline, look: Callable[..., Findings]
) -> None:
    killed, other = pipeline.consumer(), pipeline.consumer()
    wait_for(lambda: [len(stream.consumers()) for stream in (pipeline.prices, pipeline.feed)] == [2, 2])
    killed.kill()
    wait_for(lambda: [stream.backlog()[4:] for stream in (pipeline.prices, pipeline.feed)] == [(1, 1), (1, 1)])
    status = pipeline.processes.start("tickpipe", "status")
    assert status.wait() == 0
    assert "consumers 1  silent 1" in status.said()
    assert "group timescale: 0 unread, 0 pending, 1 consumers and 1 silent" in status.said()
    assert told(look(), "prices: 1 consumers and 1 silent in group timescale").state == "ok"
    other.kill()
    wait_for(lambda: pipeline.prices.backlog()[4:] == (0, 2))
    assert "see what keeps" in told(look(), "prices: 0 consumers and 2 silent in group timescale").advice


def test_a_stream_that_is_not_there_is_told(pipeline: Pipeline) -> None:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        Told(store, time.time()).store([1])
    words = "there is no stream 'nosuch' in this Redis yet"
    for command, said in {
        "status": f"{words}: has its producer run, is PRICE_STREAM the same?\nbacklog 0  consumers 0",
        "verify": f"{words}: has its producer run, is PRICE_STREAM the same? What waits in another was not looked for",
        "doctor": f"note stream nosuch: {words}",
    }.items():
        looking = pipeline.processes.start("tickpipe", command, "--price-stream", "nosuch")
        assert looking.wait() == 0, looking.said()
        assert said in looking.said()
    assert pipeline.redis.dbsize() == 0
    consumer = pipeline.consumer("--price-stream", "nosuch")
    consumer.wait_until_said("reads nosuch in the group timescale, a new stream: no producer has written to it yet")
    wait_for(lambda: pipeline.redis.exists("nosuch"))
    again = pipeline.consumer("--price-stream", "nosuch")
    again.wait_until_said("reads nosuch in the group timescale\n")


def test_a_silent_feed_an_unproven_session_and_dead_letters(pipeline: Pipeline, look: Callable[..., Findings]) -> None:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        session = Told(store, time.time() - 1000)
        session.tell("started", 0, feed="twelvedata")
        session.vouch("alive", 1, 2)
        session.store([1])
        session.store([2], price="NaN")
        found = look()
        assert states(found, "BAD") == [told(found, "feed twelvedata: last word 17 min ago").what]
        assert told(found, "1 sessions have ended").state == "note"
        assert "`tickpipe verify`" in told(found, "1 sessions have ended").advice
        assert told(found, "1 dead letters").state == "note"
        session.vouch("stopped", 2, 2)
        assert states(look(), "BAD") == []


def test_on_timescaledb_all_is_well_and_no_job_has_failed(timescale: Database, look: Callable[..., Findings]) -> None:
    with closing(DatabaseClient(Secret(timescale.url))) as store:
        migrations.apply(store)
    found = look(database_url=timescale.url)
    assert states(found, "BAD") == []
    assert told(found, "TimescaleDB 2.").state == "ok"
    assert told(found, "0 background jobs failed").state == "ok"
    assert not [what for what in found if "regular table" in what]


def test_an_ordinary_table_though_timescaledb_is_there(timescale: Database, look: Callable[..., Findings]) -> None:
    with closing(DatabaseClient(Secret(timescale.url))) as store, store.transaction() as connection:
        migrations.migrate(connection, [each for each in migrations.read_migrations() if not each.timescaledb])
    timescale.query("CREATE EXTENSION IF NOT EXISTS timescaledb")
    found = look(database_url=timescale.url)
    assert states(found, "BAD") == []
    assert "`tickpipe migrate --to-timescaledb`" in told(found, "regular table").advice


def grown(store: DatabaseClient, rows: int) -> Told:
    session = Told(store, time.time() - 600)
    session.tell("started", 0, feed="twelvedata")
    session.store(range(1, rows + 1))
    session.vouch("stopped", 600, rows)
    return session


def test_sizes_are_those_of_the_table_and_growth_is_the_feeds(pipeline: Pipeline, tmp_path: Path) -> None:
    with patient(pipeline.servers.valkey.url, pipeline.database.url, tmp_path) as found:
        empty = found.measure()
        assert (empty.table_rows_estimated, empty.table_bytes_per_day_estimated) == (0, None)
        grown(found.store, 5000)
        pipeline.prices.append([{"n": str(n)} for n in range(1000)])
        (tmp_path / "a.spool").write_bytes(b"x" * 4096)
        sizes = found.measure()
        ((size,),) = pipeline.database.query("SELECT pg_total_relation_size('prices_real_time')")
    assert sizes.table_bytes == size
    assert sizes.table_rows_estimated == 5000
    assert sizes.table_rows_per_day_estimated == pytest.approx(5000 * 144, rel=0.05)
    assert sizes.table_bytes_per_day_estimated == pytest.approx(size * 144, rel=0.05)
    assert sizes.estimated_over_seconds == pytest.approx(600, rel=0.05)
    assert sizes.stream_bytes is not None
    assert 5_000 < sizes.stream_bytes < 100_000
    assert (sizes.redis_max_bytes, sizes.spool_bytes) == (None, 4096)
    assert sizes.redis_used_bytes is not None
    assert sizes.redis_used_bytes > sizes.stream_bytes
    assert sizes.table_disk_free_bytes is not None
    assert sizes.days_until_full_estimated == pytest.approx(
        sizes.table_disk_free_bytes / (sizes.table_bytes_per_day_estimated or 1)
    )


def test_what_retention_dropped_is_taken_off(pipeline: Pipeline, tmp_path: Path) -> None:
    with patient(pipeline.servers.valkey.url, pipeline.database.url, tmp_path) as found:
        session = grown(found.store, 1000)
        pipeline.database.query("INSERT INTO feed_expired VALUES (%s, 1, 400)", session.id)
        sizes = found.measure()
        assert sizes.table_rows_estimated == 600
        assert sizes.table_rows_per_day_estimated == pytest.approx(144_000 - 400, rel=0.05)
        pipeline.database.query("UPDATE feed_expired SET at = now() - interval '2 days'")
        assert found.measure().table_rows_per_day_estimated == pytest.approx(144_000, rel=0.05)


def test_only_the_last_day_counts(pipeline: Pipeline, tmp_path: Path) -> None:
    with patient(pipeline.servers.valkey.url, pipeline.database.url, tmp_path) as found:
        day = 86_400.0
        session = Told(found.store, time.time() - 1.5 * day)
        session.vouch("alive", 0.4 * day, 700)
        session.vouch("stopped", 0.6 * day, 1000)
        old = Told(found.store, time.time() - 9 * day)
        old.vouch("stopped", 0.5 * day, 50_000)
        sizes = found.measure()
    assert sizes.table_rows_estimated == 51_000
    assert (sizes.table_rows_per_day_estimated, sizes.estimated_over_seconds) == (300, day)


def test_sizes_on_timescaledb(timescale: Database, pipeline: Pipeline, tmp_path: Path) -> None:
    with patient(pipeline.servers.valkey.url, timescale.url, tmp_path) as found:
        migrations.apply(found.store)
        grown(found.store, 2000)
        sizes = found.measure()
        ((size,),) = timescale.query("SELECT hypertable_size('prices_real_time')")
    assert sizes.table_bytes == size > 2000 * 50
    assert sizes.table_rows_estimated == 2000


def test_the_commands_as_json(pipeline: Pipeline) -> None:
    pipeline.prices.ensure_group()
    status = pipeline.processes.start("tickpipe", "status", "--json", "--disk", "/tmp")
    assert status.wait() == 0, status.said()
    told = json.loads(status.said())
    assert {"lag", "pending", "consumers"} < told["groups"]["timescale"].keys()
    assert told["rows_per_second"] is None  # one look tells no rate
    sizes = told["sizes"]
    assert sizes["table_bytes"] > 0
    assert sizes["table_disk_free_bytes"] > 0
    doctor = pipeline.processes.start("tickpipe", "doctor", "--json")
    assert doctor.wait() == 0, doctor.said()
    findings = json.loads(doctor.said())
    assert {"state", "what", "well", "advice", "grave"} == set(findings[0])
    assert {finding["state"] for finding in findings} <= {"ok", "note"}
