"""The commands of the documentation, run as a reader would type them, print what the pages show."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folders import temporary_folder
from tests.support.pages import ROOT, Block, Shell, blocks, looks_like
from tests.support.pipeline import Pipeline
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

SYMBOLS = ["BTC/USD", "ETH/USD", "AAPL"]
PAGES = ["getting-started.md", "operations.md", "files.md"]


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorConfig(rate=20)) as simulator:
        yield simulator


@pytest.fixture
def shell(tmp_path: Path, simulator: Simulator) -> Iterator[Shell]:
    """A reader's shell without URLs. The simulator replaces Twelve Data."""
    folder = tmp_path / "clone"
    folder.mkdir()
    with temporary_folder() as data_folder:
        yield Shell(folder, {"FEED_URL": simulator.url, "TICKPIPE_DATA_DIR": str(data_folder)})


@pytest.fixture
def running(pipeline: Pipeline, simulator: Simulator) -> Pipeline:
    """A running producer and consumer with stored prices of every symbol."""
    # On a busy machine Redis may answer later than usual. A page shows an empty spool.
    pipeline.producer(simulator.url, "--append-timeout", "10", symbols=SYMBOLS)
    pipeline.consumer()
    enough = "SELECT count(*) FROM (SELECT FROM prices_real_time GROUP BY symbol) AS symbols"
    wait_for(lambda: pipeline.database.query(enough) == [(len(SYMBOLS),)], message="each symbol has a price")
    reported = "SELECT 1 FROM feed_sessions WHERE last_seq > 0"
    wait_for(lambda: pipeline.database.query(reported), message="the producer has reported a sequence number")
    return pipeline


def serve(shell: Shell, block: Block, expected: str, environ: dict[str, str]) -> str:
    """Start the block's only command, wait for the expected text, send SIGTERM. Return its output."""
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
        wait_for(
            lambda: expected in log.read_text() or process.poll() is not None, message=f"{block} prints {expected!r}"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, f"{block}: {log.read_text()}"
    finally:
        process.kill()
        process.wait()
    output = log.read_text()
    assert expected in output, f"{block}: {output}"
    return output


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_print_what_it_shows(page: str, shell: Shell, running: Pipeline) -> None:
    given = {
        "REDIS_URL": running.servers.valkey.url,
        "DATABASE_URL": running.database.url,
        "SPOOL_DIR": str(running.folder / "spool"),
        "TWELVE_DATA_API_KEY": "any",
        "CLAIM_IDLE": "1",
    }
    tried = 0
    for block in blocks(ROOT / "docs" / page):
        environ = {} if block.verb.startswith("run standalone") else given
        if block.verb in {"run", "run standalone"}:
            output = shell.run(block, **environ)
        elif block.verb in {"run until", "run standalone until"}:
            output = serve(shell, block, block.rest, environ)
        else:
            continue
        tried += 1
        assert block.language == "sh" or looks_like(block.shown, output), (
            f"{block} shows\n{block.shown}\nbut prints\n{output}"
        )
    assert tried >= 5


def test_a_wrong_page_is_detected(shell: Shell) -> None:
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
