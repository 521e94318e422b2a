"""`tickpipe tail`: ticks on standard output, each once, until Ctrl-C or until the reader closes the pipe."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.output import CLOSED_PIPE
from tests.integration.test_subscribe import ALL, EXPECTED, SYMBOL, TICKS, store_one_of_each_symbol
from tests.support.capture import SESSION
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.waiting import PATIENCE, wait_for


def test_json_lines_are_the_ticks_past_and_live(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    pipeline.append(TICKS[:3000])
    pipeline.drain()
    tail = pipeline.processes.start("tickpipe", "tail", SYMBOL, "--since", ALL, "--json")
    wait_for(lambda: f'"seq": {max(seq for seq in EXPECTED if seq <= 3000)},' in tail.said(), message="the past")
    pipeline.append(TICKS[3000:])
    wait_for(lambda: f'"seq": {EXPECTED[-1]},' in tail.said(), message="the last tick")
    assert tail.stop() == 0
    found = [json.loads(line) for line in tail.said().splitlines()]
    assert [each["seq"] for each in found if each["session"] == SESSION] == EXPECTED
    first = TICKS[EXPECTED[0] - 1]
    assert (found[0]["symbol"], found[0]["price"]) == (SYMBOL, float(first.price))
    assert found[0]["time"].endswith("+00:00")


def test_csv_has_a_line_of_names(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    tail = pipeline.processes.start("tickpipe", "tail", "--since", "2023-11-14", "--csv")
    wait_for(lambda: len(tail.said().splitlines()) > 200, message="200 ticks and a line of names")
    tail.signal(signal.SIGINT)
    assert tail.wait() == 0
    rows = list(csv.DictReader(io.StringIO(tail.said())))
    assert sorted(int(row["seq"]) for row in rows) == list(range(1, 201))
    assert {row["source"] for row in rows} == {""}


def test_new_ticks_are_printed_at_once_as_text(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    tail = pipeline.processes.start("tickpipe", "tail")

    def printed() -> bool:
        pipeline.append([TICKS[0]._replace(session=str(SESSION + printed_sessions.pop(0)))])
        return bool(tail.said())

    printed_sessions = list(range(10_000))  # a tick of a new session at each look, since it begins at the end
    wait_for(printed, message="a tick")
    line = tail.said().splitlines()[0]
    assert line.startswith("2025-10-09T08:53:20.000003Z ")
    assert f" {TICKS[0].symbol} {float(TICKS[0].price)}" in line
    assert tail.stop() == 0


def test_closed_pipe_ends_it(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    environ = {
        "PATH": os.environ["PATH"], "REDIS_URL": pipeline.servers.valkey.url, "DATABASE_URL": pipeline.database.url,
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("tickpipe")), "tail", "--since", ALL]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        pipeline.append(TICKS[:1])
        assert process.stdout.readline()
        process.stdout.close()

        def ended() -> bool:
            pipeline.append(TICKS[numbers.pop(0) :][:20])
            return process.poll() is not None

        numbers = list(range(1, 5000))
        wait_for(ended, PATIENCE, "the command ends at its next line")
        assert process.returncode == CLOSED_PIPE
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["BTC/EUR"], "no prices of 'BTC/EUR' are stored. The nearest: BTC/USD"),
        (["--since", "soon"], "--since 'soon' is not a date or an age. Examples"),
        (["--json", "--csv"], "--json and --csv exclude each other"),
    ],
)
def test_wrong_usage_is_named_in_one_line(pipeline: Pipeline, options: list[str], message: str) -> None:
    store_one_of_each_symbol(pipeline)
    tail = pipeline.processes.start("tickpipe", "tail", *options)
    assert tail.wait() == 2
    (line,) = tail.said().splitlines()
    assert line.startswith(f"tickpipe: {message}")


def reader_rules() -> list[str]:
    """The rights of a reader as docs/configuration.md shows them."""
    page = (Path(__file__).parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
    found = re.search(r"^ACL SETUSER reader on >PASSWORD (.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found
    return found[1].split()


def test_documented_rights_are_those_that_it_needs(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)

    def start(rules: list[str]) -> Running:
        pipeline.redis.execute_command("ACL", "SETUSER", "reader", "reset", "on", ">secret", *rules)  # type: ignore[no-untyped-call]
        url = f"{pipeline.servers.valkey.url}?username=reader&password=secret"
        return pipeline.processes.start("tickpipe", "tail", "--since", ALL, "--json", REDIS_URL=url)

    try:
        tail = start(reader_rules())
        pipeline.append(TICKS[:100])
        wait_for(lambda: len(tail.said().splitlines()) >= 100, message="all ticks")
        assert tail.stop() == 0
        for right in ("+xrange", "+multi"):
            tail = start([*reader_rules(), f"-{right[1:]}"])
            assert (right, tail.wait()) == (right, 2)
            assert right[1:] in tail.last_log_line()[-1].lower()
    finally:
        pipeline.redis.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]
