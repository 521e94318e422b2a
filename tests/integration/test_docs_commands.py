"""The commands on the pages, typed as they stand there, do what the page shows (tests/support/pages.py)."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.homes import temporary_home
from tests.support.pages import ROOT, Block, Shell, blocks, looks_like
from tests.support.pipeline import Pipeline
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

SYMBOLS = ["BTC/USD", "ETH/USD", "AAPL"]
PAGES = ["getting-started.md", "operations.md"]


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorConfig(rate=20)) as simulator:
        yield simulator


@pytest.fixture
def shell(tmp_path: Path, simulator: Simulator) -> Iterator[Shell]:
    """A reader's shell, without URLs; what is real there is the simulator here."""
    folder = tmp_path / "clone"
    folder.mkdir()
    with temporary_home() as home:
        yield Shell(folder, {"TWELVE_DATA_URL": simulator.url, "TICKPIPE_DATA_DIR": str(home)})


@pytest.fixture
def running(pipeline: Pipeline, simulator: Simulator) -> Pipeline:
    """A producer and a consumer that have stored prices of every symbol."""
    pipeline.producer(simulator.url, symbols=SYMBOLS)
    pipeline.consumer()
    enough = "SELECT count(*) FROM (SELECT FROM prices_real_time GROUP BY symbol) AS symbols"
    wait_for(lambda: pipeline.database.query(enough) == [(len(SYMBOLS),)], message="each symbol has a price")
    vouched = "SELECT 1 FROM feed_sessions WHERE last_seq > 0"
    wait_for(lambda: pipeline.database.query(vouched), message="the producer has vouched for some")
    return pipeline


def serve(shell: Shell, block: Block, words: str, environ: dict[str, str]) -> str:
    """Start the block's one command, wait for these words, tell it to stop: what it said."""
    (line,) = block.script.strip().splitlines()
    log = shell.folder / "served.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            shlex.split(line),
            cwd=shell.folder,
            env={**shell.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for(lambda: words in log.read_text() or process.poll() is not None, 20, f"{block} says {words!r}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, f"{block}: {log.read_text()}"
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert words in said, f"{block}: {said}"
    return said


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, shell: Shell, running: Pipeline) -> None:
    given = {
        "REDIS_URL": running.servers.valkey.url,
        "DATABASE_URL": running.database.url,
        "SPOOL_DIR": str(running.folder / "spool"),
        "TWELVE_DATA_API_KEY": "any",
        "CLAIM_IDLE": "1",
    }
    tried = 0
    for block in blocks(ROOT / "docs" / page):
        environ = {} if block.verb.startswith("run home") else given
        if block.verb in {"run", "run home"}:
            said = shell.run(block, **environ)
        elif block.verb in {"run until", "run home until"}:
            said = serve(shell, block, block.rest, environ)
        else:
            continue
        tried += 1
        assert block.language == "sh" or looks_like(block.shown, said), (
            f"{block} shows\n{block.shown}\nand says\n{said}"
        )
    assert tried >= 5


def test_a_page_that_is_wrong_is_found(shell: Shell) -> None:
    def block(text: str) -> Block:
        return Block("page.md", 1, "console", text, "run", "")

    assert looks_like("12 of 1,200 stored\n…\nend\n", "7 of  9 stored\nmore\nand more\nend\n")
    assert not looks_like("12 stored\n", "12 stored\nMISSING 3\n")
    assert not looks_like("ok   Redis\n", "BAD  Redis\n")
    assert shell.run(block("$ echo one \\\n    two\none two\n")) == "one two\n"
    with pytest.raises(AssertionError, match="ends with status 2"):
        shell.run(block("$ .venv/bin/tickpipe fly\n"))
    with pytest.raises(AssertionError, match="ends with status 1"):
        shell.run(block("$ false | true\n"))
