"""The backup and restore commands of docs/operations.md, run unchanged."""

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
from tests.support.folders import temporary_folder
from tests.support.pages import ROOT, Shell, blocks
from tests.support.pipeline import GROUP, Database, Pipeline
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

BLOCKS = {block.rest: block for block in blocks(ROOT / "docs/operations.md") if block.verb == "backup"}
TABLES = ("prices_real_time", "feed_events", "dead_letters", "verified_sessions", "tickpipe_migrations")
N = 3000


@pytest.fixture
def data_folder() -> Iterator[Path]:
    with temporary_folder() as data_folder:
        yield data_folder


@pytest.fixture
def shell(tmp_path: Path, data_folder: Path) -> Shell:
    folder, backup = tmp_path / "clone", data_folder / "backup"
    folder.mkdir()
    backup.mkdir()
    return Shell(folder, {"BACKUP": str(backup), "CLAIM_IDLE": "1"})


def produce(pipeline: Pipeline, folder: Path, seed: int) -> None:
    """Run a producer until all its N prices and its last report are in Redis."""
    capture = write_capture(folder / f"{seed}.jsonl", make_events(N, seed))
    before = pipeline.appended()
    with Simulator(SimulatorConfig(capture=capture, speed=0)) as simulator:
        producer = pipeline.producer(simulator.url)
        wait_for(lambda: pipeline.appended() == before + N, message="all prices are in Redis")
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
    """Start the servers of a data folder as the page does, and return the printed URLs. Ctrl-C stops them."""
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


def test_database_dump_is_restored_completely_into_a_new_data_folder(
    pipeline: Pipeline, shell: Shell, data_folder: Path, tmp_path: Path
) -> None:
    produce(pipeline, tmp_path, 1)
    pipeline.redis.xadd("prices", {"symbol": "an entry of nobody"})
    pipeline.drain()
    dumped = rows(pipeline.database)
    assert len(dumped["prices_real_time"]) == N
    assert len(dumped["dead_letters"]) == 1
    shell.run(BLOCKS["dump"], BLOCKS["tools"], **urls(pipeline))

    live = data_folder / "data" / "demo"
    with embedded(shell, live) as there:
        said = shell.run(BLOCKS["restore"], BLOCKS["tools"], **there)
        assert f"complete, {N:,} of {N:,} stored" in said
        assert "1 session verified, 0 incomplete" in said
        with closing(Database(there["DATABASE_URL"])) as restored:
            assert {**rows(restored), "verified_sessions": []} == {**dumped, "verified_sessions": []}
            assert restored.query("SELECT * FROM candles_1m ORDER BY candles_1m") == pipeline.database.query(
                "SELECT * FROM candles_1m ORDER BY candles_1m"
            )
            restored.query("DELETE FROM prices_real_time WHERE seq = 7")
        with pytest.raises(AssertionError, match=r"MISSING 7 \(1\)"):
            shell.script("verify", ".venv/bin/tickpipe verify --all", **there)

    said = shell.script("up", f".venv/bin/tickpipe up --for 1 --no-dashboard --data-dir {data_folder}/data")
    assert (found := re.search(r"received ([\d,]+) = stored \1$", said, re.M)), said
    shell.run(BLOCKS["folder"], LIVE=str(live))
    with embedded(shell, data_folder / "backup" / "demo") as there, closing(Database(there["DATABASE_URL"])) as copied:
        assert copied.count() == N - 1 + int(found[1].replace(",", ""))


def test_dump_is_not_restored_over_existing_tables(
    pipeline: Pipeline, fresh_database: Database, shell: Shell, tmp_path: Path
) -> None:
    produce(pipeline, tmp_path, 1)
    pipeline.drain()
    shell.run(BLOCKS["dump"], BLOCKS["tools"], **urls(pipeline))
    with pytest.raises(AssertionError, match="already exists"):
        shell.run(BLOCKS["restore"], BLOCKS["tools"], **{**urls(pipeline), "DATABASE_URL": fresh_database.url})
    assert fresh_database.count() == 0, "all or nothing"


def test_redis_older_than_the_database_duplicates_and_loses_nothing(
    breakable_pipeline: Pipeline, shell: Shell, tmp_path: Path
) -> None:
    pipeline, valkey = breakable_pipeline, breakable_pipeline.servers.valkey
    data = {"REDIS_DATA": str(valkey.folder / valkey.data)}
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

    produce(pipeline, tmp_path, 3)  # the pipeline continues
    said = shell.run(BLOCKS["drain"], **urls(pipeline))
    assert "3 sessions verified, 0 incomplete" in said
    assert pipeline.database.count() == 3 * N

    valkey.stop()  # without a backup
    shutil.rmtree(valkey.folder / valkey.data)
    valkey.start()
    produce(pipeline, tmp_path, 4)
    assert "4 sessions verified, 0 incomplete" in shell.run(BLOCKS["drain"], **urls(pipeline))
    assert pipeline.database.count() == 4 * N


def test_every_documented_backup_command_is_run() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert BLOCKS
    assert [name for name in BLOCKS if f'BLOCKS["{name}"]' not in here] == []
