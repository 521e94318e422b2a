"""Backup and restore: the commands of docs/operations.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.streams.group import ConsumerGroup
from tests.support.capture import make_events, write_capture
from tests.support.homes import temporary_home
from tests.support.pages import ROOT, Shell, blocks
from tests.support.pipeline import GROUP, Database, Pipeline
from tests.support.waiting import wait_for
from tickpipe.simulator.websocket import Simulator, SimulatorConfig

BLOCKS = {block.rest: block for block in blocks(ROOT / "docs/operations.md") if block.verb == "backup"}
TABLES = ("prices_real_time", "feed_events", "dead_letters", "verified_sessions", "tickpipe_migrations")
N = 3000


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_home() as home:
        yield home


@pytest.fixture
def shell(tmp_path: Path, home: Path) -> Shell:
    folder, backup = tmp_path / "clone", home / "backup"
    folder.mkdir()
    backup.mkdir()
    return Shell(folder, {"BACKUP": str(backup), "CLAIM_IDLE": "1"})


def produce(pipeline: Pipeline, folder: Path, seed: int) -> None:
    """A producer's run from its first price to its last word: N prices, all of them in Redis at its end."""
    capture = write_capture(folder / f"{seed}.jsonl", make_events(N, seed))
    before = pipeline.appended()
    with Simulator(SimulatorConfig(capture=capture, speed=0)) as simulator:
        producer = pipeline.producer(simulator.url)
        wait_for(lambda: pipeline.appended() == before + N, 20, "all prices are in Redis")
        assert producer.stop() == 0


def rows(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    return {table: database.query(f"SELECT * FROM {table} ORDER BY {table}") for table in TABLES}


def urls(pipeline: Pipeline) -> dict[str, str]:
    return {
        "REDIS_URL": pipeline.servers.valkey.url,
        "DATABASE_URL": pipeline.database.url,
        "SPOOL_DIR": str(pipeline.folder / "spool"),
    }


@contextmanager
def embedded(shell: Shell, live: Path) -> Iterator[dict[str, str]]:
    """The page's way to start the servers of a folder alone: the URLs that it prints. Ended by Ctrl-C."""
    process = subprocess.Popen(
        ["bash", "-c", BLOCKS["servers"].script],
        cwd=shell.folder,
        env={**shell.environ, "LIVE": str(live)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        said = process.stdout.readline() + process.stdout.readline()
        found = re.fullmatch(r"export REDIS_URL='(.+)'\nexport DATABASE_URL='(.+)'\n", said)
        assert found, said
        yield {"REDIS_URL": found[1], "DATABASE_URL": found[2], "SPOOL_DIR": str(live / "spool")}
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_dump_of_the_database_is_restored_into_a_new_home_and_nothing_is_missing(
    pipeline: Pipeline, shell: Shell, home: Path, tmp_path: Path
) -> None:
    produce(pipeline, tmp_path, 1)
    pipeline.redis.xadd("prices", {"symbol": "an entry of nobody"})
    pipeline.drain()
    dumped = rows(pipeline.database)
    assert len(dumped["prices_real_time"]) == N
    assert len(dumped["dead_letters"]) == 1
    shell.run(BLOCKS["dump"], BLOCKS["tools"], **urls(pipeline))

    live = home / "data" / "demo"
    with embedded(shell, live) as there:
        said = shell.run(BLOCKS["restore"], BLOCKS["tools"], **there)
        assert f"complete, {N:,} of {N:,} stored" in said
        assert "1 sessions verified, 0 incomplete" in said
        with closing(Database(there["DATABASE_URL"])) as restored:
            assert {**rows(restored), "verified_sessions": []} == {**dumped, "verified_sessions": []}
            assert restored.query("SELECT * FROM candles_1m ORDER BY candles_1m") == pipeline.database.query(
                "SELECT * FROM candles_1m ORDER BY candles_1m"
            )
            restored.query("DELETE FROM prices_real_time WHERE seq = 7")
        with pytest.raises(AssertionError, match=r"MISSING 7 \(1\)"):
            shell.script("verify", ".venv/bin/tickpipe verify --all", **there)

    said = shell.script("up", f".venv/bin/tickpipe up --for 1 --no-dashboard --data-dir {home}/data")
    assert (found := re.search(r"received ([\d,]+) = stored \1$", said, re.M)), said
    shell.run(BLOCKS["folder"], LIVE=str(live))
    with embedded(shell, home / "backup" / "demo") as there, closing(Database(there["DATABASE_URL"])) as copied:
        assert copied.count() == N - 1 + int(found[1].replace(",", ""))


def test_a_dump_does_not_go_over_tables_that_are_there(
    pipeline: Pipeline, fresh_database: Database, shell: Shell, tmp_path: Path
) -> None:
    produce(pipeline, tmp_path, 1)
    pipeline.drain()
    shell.run(BLOCKS["dump"], BLOCKS["tools"], **urls(pipeline))
    with pytest.raises(AssertionError, match="already exists"):
        shell.run(BLOCKS["restore"], BLOCKS["tools"], **{**urls(pipeline), "DATABASE_URL": fresh_database.url})
    assert fresh_database.count() == 0, "all or nothing"


def test_a_redis_that_is_older_than_the_database_doubles_nothing_and_nothing_is_missing(
    breakable_pipeline: Pipeline, shell: Shell, tmp_path: Path
) -> None:
    pipeline, valkey = breakable_pipeline, breakable_pipeline.servers.valkey
    data = {"REDIS_DATA": str(valkey.home / valkey.data)}
    produce(pipeline, tmp_path, 1)
    dead = ConsumerGroup(pipeline.redis, "prices", GROUP, "a consumer that is dead")
    dead.ensure_group()
    assert len(dead.read(100)) == 100
    shell.run(BLOCKS["redis"], **urls(pipeline), **data)

    pipeline.drain()
    produce(pipeline, tmp_path, 2)
    pipeline.drain()
    before = rows(pipeline.database)
    assert len(before["prices_real_time"]) == 2 * N

    valkey.stop()
    shell.run(BLOCKS["restore redis"], **data)
    valkey.start()
    assert pipeline.prices.backlog()[2:4] == (N - 100, 100), "lag and pending are those of the copy"
    said = shell.run(BLOCKS["drain"], **urls(pipeline))
    assert f"stopped: 0 rows stored, {N} duplicates, 0 dead letters" in shell.errors
    assert "2 sessions verified, 0 incomplete" in said
    assert {**rows(pipeline.database), "verified_sessions": []} == before

    produce(pipeline, tmp_path, 3)  # and life goes on
    said = shell.run(BLOCKS["drain"], **urls(pipeline))
    assert "3 sessions verified, 0 incomplete" in said
    assert pipeline.database.count() == 3 * N

    valkey.stop()  # and without any copy
    shutil.rmtree(valkey.home / valkey.data)
    valkey.start()
    produce(pipeline, tmp_path, 4)
    assert "4 sessions verified, 0 incomplete" in shell.run(BLOCKS["drain"], **urls(pipeline))
    assert pipeline.database.count() == 4 * N


def test_every_block_about_backups_is_run() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert BLOCKS
    assert [name for name in BLOCKS if f'BLOCKS["{name}"]' not in here] == []
