"""`tickpipe doctor` and the sizes of `tickpipe status`: each finding is provoked on a real server."""

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
from common.streams.channels import ChannelStreams
from common.streams.group import ConsumerGroup
from tests.support.folders import temporary_folder
from tests.support.pipeline import GROUP, Database, Pipeline
from tests.support.sessions import StoredSession
from tests.support.waiting import wait_for
from tickpipe.inspect.doctor import CheckContext, Finding, examine
from tickpipe.inspect.sizes import SizeProbe
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer

Findings = dict[str, Finding]


@contextmanager
def context(redis_url: str, database_url: str, spool: Path, *, ahead: float = 0.0) -> Iterator[CheckContext]:
    """`ahead`: seconds by which this machine's clock is fast."""
    client = redis.Redis.from_url(redis_url)
    with closing(DatabaseClient(Secret(database_url))) as store, closing(client):
        channels = ChannelStreams(lambda key: ConsumerGroup(client, key, GROUP, "doctor"), "prices")
        measure = SizeProbe(channels.all, store, spool)
        yield CheckContext(channels, store, measure, lambda: "key", lambda: int((time.time() + ahead) * 1e6))


@pytest.fixture
def look(pipeline: Pipeline, tmp_path: Path) -> Callable[..., Findings]:
    def look(redis_url: str = "", database_url: str = "", **other: float) -> Findings:
        redis_url, database_url = redis_url or pipeline.servers.valkey.url, database_url or pipeline.database.url
        with context(redis_url, database_url, tmp_path / "spool", **other) as found:
            return {each.what: each for each in examine(found)}

    return look


def states(findings: Findings, state: str) -> list[str]:
    return [what for what, finding in findings.items() if finding.state == state]


def finding(findings: Findings, words: str) -> Finding:
    """The one finding with this text."""
    (found,) = [each for what, each in findings.items() if words in what]
    return found


def test_servers_with_our_settings_are_healthy(look: Callable[..., Findings]) -> None:
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
def test_misconfigured_redis_is_reported(
    look: Callable[..., Findings], settings: dict[str, str], words: str, advice: str
) -> None:
    with temporary_folder() as home:
        server = ValkeyServer(home / "valkey", settings=settings)
        server.start()
        try:
            found = look(redis_url=server.url)
        finally:
            server.stop()
    assert len(states(found, "BAD")) == 1
    assert finding(found, words).state == "BAD"
    assert advice in finding(found, words).advice


def test_misconfigured_database_is_reported(look: Callable[..., Findings]) -> None:
    with temporary_folder() as home:
        server = PostgresServer(home / "postgres-18", settings={"fsync": "off", "full_page_writes": "off"})
        server.start()
        try:
            with closing(DatabaseClient(Secret(server.url))) as store:
                migrations.apply(store)
            found = look(database_url=server.url)
        finally:
            server.stop()
    assert sorted(states(found, "BAD")) == ["database: fsync off", "database: full_page_writes off"]
    assert "set fsync = on" in finding(found, "database: fsync").advice


def test_asynchronous_commits_and_time_zone_are_reported(
    pipeline: Pipeline, new_role: Callable[[], str], look: Callable[..., Findings]
) -> None:
    role = new_role()
    pipeline.database.query(f"ALTER ROLE {role} SET synchronous_commit = off")
    pipeline.database.query(f"ALTER ROLE {role} SET TimeZone = 'Asia/Tokyo'")
    url = pipeline.database.url.replace("user=tickpipe", f"user={role}")
    found = look(database_url=url)
    assert finding(found, "synchronous_commit off").state == "note"
    assert finding(found, "time zone Asia/Tokyo").state == "ok"


def test_missing_read_right_is_a_note_and_other_checks_run(
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
        "Redis: INFO of the replicas",
        "Redis: appendonly yes, appendfsync always, maxmemory-policy noeviction",
        "database: schema and jobs",
        "database: feed and sizes",
    }
    assert all(each.state == "note" and "check it yourself" in each.advice for each in hidden.values())
    assert finding(found, "prices: no group holds back").state == "ok"
    assert finding(found, "database: fsync on").state == "ok"


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_clock_differences_are_reported(look: Callable[..., Findings], ahead: float) -> None:
    found = look(ahead=ahead)
    assert len(states(found, "BAD")) == 2
    for place in ("Redis", "database"):
        assert finding(found, f"{place}: its clock and this machine's differ by 3600.0 s").state == "BAD"


def test_missing_or_changed_schema_is_reported(empty_pipeline: Pipeline, look: Callable[..., Findings]) -> None:
    url = empty_pipeline.database.url
    assert look(database_url=url)["schema"].advice == "run `tickpipe migrate`"
    with closing(DatabaseClient(Secret(url))) as store:
        migrations.apply(store)
    assert states(look(database_url=url), "BAD") == []
    empty_pipeline.database.query("UPDATE tickpipe_migrations SET checksum = 'x' WHERE name = '0003_feed.sql'")
    assert states(look(database_url=url), "BAD") == ["migrations changed since they were applied: 0003_feed.sql"]
    empty_pipeline.database.query("DELETE FROM tickpipe_migrations WHERE name = '0008_backfill.sql'")
    assert "schema" in states(look(database_url=url), "BAD")


def test_backlog_without_readers_is_reported(pipeline: Pipeline, look: Callable[..., Findings]) -> None:
    pipeline.prices.append([{"n": "1"}])
    found = look()
    assert states(found, "BAD") == ["prices: 0 consumers in group timescale, 1 entry left"]
    assert finding(found, "prices:feed: 0 consumers").state == "note"


def test_killed_consumer_is_not_counted(pipeline: Pipeline, look: Callable[..., Findings]) -> None:
    killed, other = pipeline.consumer(), pipeline.consumer()
    wait_for(lambda: [len(stream.consumers()) for stream in (pipeline.prices, pipeline.feed)] == [2, 2])
    killed.kill()
    wait_for(lambda: [stream.backlog()[4:] for stream in (pipeline.prices, pipeline.feed)] == [(1, 1), (1, 1)])
    status = pipeline.processes.start("tickpipe", "status")
    assert status.wait() == 0
    assert "consumers 1  idle 1" in status.said()
    assert "group timescale: 0 unread, 0 pending, 1 consumer and 1 idle" in status.said()
    assert finding(look(), "prices: 1 consumer and 1 idle in group timescale").state == "ok"
    other.kill()
    wait_for(lambda: pipeline.prices.backlog()[4:] == (0, 2))
    assert "find out why the idle ones" in finding(look(), "prices: 0 consumers and 2 idle in group timescale").advice


def test_missing_stream_is_reported(pipeline: Pipeline) -> None:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        StoredSession(store, time.time()).store([1])
    words = "there is no stream 'nosuch' in this Redis yet"
    for command, said in {
        "status": f"{words}: has its producer run, is PRICE_STREAM the same?\nbacklog 0  consumers 0",
        "verify": f"{words}: has its producer run, is PRICE_STREAM the same? Prices that wait in another stream",
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


def test_silent_feed_unverified_session_and_dead_letters_are_reported(
    pipeline: Pipeline, look: Callable[..., Findings]
) -> None:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        session = StoredSession(store, time.time() - 1000)
        session.emit("started", 0, feed="twelvedata")
        session.checkpoint("alive", 1, 2)
        session.store([1])
        session.store([2], price="NaN")
        found = look()
        assert states(found, "BAD") == [finding(found, "feed twelvedata: last report 17 min ago").what]
        assert finding(found, "1 session has ended").state == "note"
        assert "`tickpipe verify`" in finding(found, "1 session has ended").advice
        assert finding(found, "1 dead letter").state == "note"
        session.checkpoint("stopped", 2, 2)
        assert states(look(), "BAD") == []


def test_timescaledb_is_healthy_without_failed_jobs(timescale: Database, look: Callable[..., Findings]) -> None:
    with closing(DatabaseClient(Secret(timescale.url))) as store:
        migrations.apply(store)
    found = look(database_url=timescale.url)
    assert states(found, "BAD") == []
    assert finding(found, "TimescaleDB 2.").state == "ok"
    assert finding(found, "0 background jobs failed").state == "ok"
    assert not [what for what in found if "regular table" in what]


def test_regular_table_with_timescaledb_installed_is_reported(
    timescale: Database, look: Callable[..., Findings]
) -> None:
    with closing(DatabaseClient(Secret(timescale.url))) as store, store.transaction() as connection:
        migrations.migrate(connection, [each for each in migrations.read_migrations() if not each.timescaledb])
    timescale.query("CREATE EXTENSION IF NOT EXISTS timescaledb")
    found = look(database_url=timescale.url)
    assert states(found, "BAD") == []
    assert "`tickpipe migrate --to-timescaledb`" in finding(found, "regular table").advice


def grown(store: DatabaseClient, rows: int) -> StoredSession:
    session = StoredSession(store, time.time() - 600)
    session.emit("started", 0, feed="twelvedata")
    session.store(range(1, rows + 1))
    session.checkpoint("stopped", 600, rows)
    return session


def test_sizes_come_from_the_table_and_growth_from_the_feed(pipeline: Pipeline, tmp_path: Path) -> None:
    with context(pipeline.servers.valkey.url, pipeline.database.url, tmp_path) as found:
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


def test_sizes_exclude_rows_dropped_by_retention(pipeline: Pipeline, tmp_path: Path) -> None:
    with context(pipeline.servers.valkey.url, pipeline.database.url, tmp_path) as found:
        session = grown(found.store, 1000)
        pipeline.database.query("INSERT INTO feed_expired VALUES (%s, 1, 400)", session.id)
        sizes = found.measure()
        assert sizes.table_rows_estimated == 600
        assert sizes.table_rows_per_day_estimated == pytest.approx(144_000 - 400, rel=0.05)
        pipeline.database.query("UPDATE feed_expired SET at = now() - interval '2 days'")
        assert found.measure().table_rows_per_day_estimated == pytest.approx(144_000, rel=0.05)


def test_growth_covers_only_the_last_day(pipeline: Pipeline, tmp_path: Path) -> None:
    with context(pipeline.servers.valkey.url, pipeline.database.url, tmp_path) as found:
        day = 86_400.0
        session = StoredSession(found.store, time.time() - 1.5 * day)
        session.checkpoint("alive", 0.4 * day, 700)
        session.checkpoint("stopped", 0.6 * day, 1000)
        old = StoredSession(found.store, time.time() - 9 * day)
        old.checkpoint("stopped", 0.5 * day, 50_000)
        sizes = found.measure()
    assert sizes.table_rows_estimated == 51_000
    # A day ago it was between the two reports, of 700 and of 1,000 prices: half of the 300 are counted.
    assert sizes.table_rows_per_day_estimated == pytest.approx(150, abs=1)
    assert sizes.estimated_over_seconds == day


def test_sizes_are_measured_on_timescaledb(timescale: Database, pipeline: Pipeline, tmp_path: Path) -> None:
    with context(pipeline.servers.valkey.url, timescale.url, tmp_path) as found:
        migrations.apply(found.store)
        grown(found.store, 2000)
        sizes = found.measure()
        ((size,),) = timescale.query("SELECT hypertable_size('prices_real_time')")
    assert sizes.table_bytes == size > 2000 * 50
    assert sizes.table_rows_estimated == 2000


def test_commands_print_json(pipeline: Pipeline) -> None:
    pipeline.prices.ensure_group()
    status = pipeline.processes.start("tickpipe", "status", "--json", "--disk", "/tmp")
    assert status.wait() == 0, status.said()
    printed = json.loads(status.said())
    assert {"lag", "pending", "consumers"} < printed["groups"]["timescale"].keys()
    assert printed["rows_per_second"] is None  # one snapshot is too short for a rate
    sizes = printed["sizes"]
    assert sizes["table_bytes"] > 0
    assert sizes["table_disk_free_bytes"] > 0
    doctor = pipeline.processes.start("tickpipe", "doctor", "--json")
    assert doctor.wait() == 0, doctor.said()
    findings = json.loads(doctor.said())
    assert {"state", "what", "well", "advice", "grave"} == set(findings[0])
    assert {finding["state"] for finding in findings} <= {"ok", "note"}
