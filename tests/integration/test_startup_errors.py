"""Settings that cannot work stop a command at startup: status 2, one line, no secret."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.pipeline import Database, Pipeline
from tests.support.processes import Processes, Running
from tests.support.waiting import wait_for
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

SECRET = "s3cr/t+word"


def refusal(process: Running) -> str:
    """The only error line of a command that exited with 2, without a traceback or a secret."""
    assert process.wait() == 2
    assert "Traceback" not in process.said()
    for secret in (SECRET, "s3cr%2Ft%2Bword", "s3cr"):
        assert secret not in process.said()
    (words,) = process.last_log_line()
    assert words == process.said().splitlines()[-1]
    return words


def test_wrong_database_password_exits_2(processes: Processes, folder: Path, pipeline: Pipeline) -> None:
    server = PostgresServer(folder / "postgres-18")
    server.start()
    try:
        with closing(Database(server.url)) as admin:
            admin.query("CREATE ROLE writer LOGIN PASSWORD 'right'")
            rules = folder / "postgres-18/data/pg_hba.conf"
            rules.write_text("local all tickpipe trust\nlocal all writer,ghost scram-sha-256\nlocal all all reject\n")
            admin.query("SELECT pg_reload_conf()")
            wait_for(lambda: admin.query("SELECT count(*) FROM pg_hba_file_rules") == [(3,)])
            outcomes = {
                f"writer:{SECRET.replace('/', '%2F')}": 'password authentication failed for user "writer"',
                f"ghost:{SECRET.replace('/', '%2F')}": 'password authentication failed for user "ghost"',
                "writer": "no password supplied",
                "stranger": "pg_hba.conf rejects connection",
            }
            everywhere = server.url.replace("&user=tickpipe", "")
            tried = [
                (
                    name,
                    words,
                    processes.start(
                        *command,
                        DATABASE_URL=everywhere.replace("///", f"//{login}@/"),
                        REDIS_URL=pipeline.servers.valkey.url,
                    ),
                )
                for login, words in outcomes.items()
                for name, *command in (
                    ["consumer", "consumer", "--log-level", "DEBUG"],
                    ["tickpipe", "tickpipe", "migrate"],
                )
            ]
            for name, words, process in tried:
                said = refusal(process)
                assert said.startswith(f"{name}: the database refuses DATABASE_URL: ")
                assert words in said
    finally:
        server.stop()


@pytest.mark.parametrize("command", ["producer", "consumer"])
def test_wrong_redis_password_exits_2(processes: Processes, folder: Path, pipeline: Pipeline, command: str) -> None:
    server = ValkeyServer(folder / "valkey", settings={"requirepass": "right"})
    server.start()
    try:
        options = {"producer": ["--symbols", "AAPL"], "consumer": []}[command]
        refused = processes.start(
            command,
            *options,
            "--log-level",
            "DEBUG",
            REDIS_URL=f"{server.url}?password={SECRET.replace('+', '%2B')}",
            DATABASE_URL=pipeline.database.url,
            TWELVE_DATA_API_KEY="any",
        )
        assert refusal(refused).startswith(f"{command}: Redis refuses the login in REDIS_URL: ")
    finally:
        server.stop()


def test_refused_api_key_exits_2(pipeline: Pipeline) -> None:
    with Simulator(SimulatorConfig(api_key="right")) as simulator:
        producer = pipeline.producer(
            simulator.url, "--log-level", "DEBUG", symbols=["AAPL"], TWELVE_DATA_API_KEY=SECRET
        )
        words = refusal(producer)
    assert words == "producer: Twelve Data refuses the API key: check TWELVE_DATA_API_KEY."


def test_all_symbols_refused_exits_2(pipeline: Pipeline) -> None:
    with Simulator(SimulatorConfig()) as simulator:
        producer = pipeline.producer(simulator.url, symbols=["NOSUCH", "NORTHIS"])
        words = refusal(producer)
    assert words.startswith("producer: none of the symbols can be subscribed: NORTHIS (")
    assert "NOSUCH (" in words


REFUSED: list[tuple[list[str], Mapping[str, str], str]] = [
    (["producer", "--symbols", "AAPL"], {"TWELVE_DATA_API_KEY": ""}, "producer: no API key: set TWELVE_DATA_API_KEY"),
    (["producer"], {}, "producer: no symbols: give at least one"),
    (["producer", "--symbols", " , "], {}, "producer: no symbols: give at least one"),
    (["producer", "--symbols-file", "nowhere"], {}, "producer: --symbols-file nowhere cannot be read"),
    (
        ["producer", "--symbols", "AAPL", "--url", "http://example.com"],
        {},
        "producer: --url 'http://example.com' is no",
    ),
    (
        ["producer", "--symbols", "AAPL"],
        {"REDIS_URL": f"http://:{SECRET}@host"},
        "producer: REDIS_URL is not a Redis URL",
    ),
    (
        ["producer", "--symbols", "AAPL", "--log-level", "loud"],
        {},
        "producer: LOG_LEVEL 'loud' is unknown: use one of DEBUG",
    ),
    (["consumer"], {"REDIS_URL": f"localhost:{SECRET}"}, "consumer: REDIS_URL is not a Redis URL"),
    (["consumer"], {"DATABASE_URL": f"mysql://u:{SECRET}@h/d"}, "consumer: DATABASE_URL is not a PostgreSQL URL"),
    (["consumer"], {"DATABASE_URL_FILE": "/nowhere"}, "consumer: DATABASE_URL_FILE names /nowhere, which cannot be"),
    (
        ["tickpipe", "migrate"],
        {"DATABASE_URL": f"p://u:{SECRET}@h/d"},
        "tickpipe: DATABASE_URL is not a PostgreSQL URL",
    ),
]


@pytest.mark.parametrize(("command", "environ", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_impossible_setting_exits_2(
    processes: Processes, command: list[str], environ: Mapping[str, str], words: str
) -> None:
    defaults = {"TWELVE_DATA_API_KEY": "any", "REDIS_URL": "unix:///nowhere"}
    assert refusal(processes.start(*command, **{**defaults, **environ})).startswith(words)


def test_key_file_is_read_at_every_connect(pipeline: Pipeline, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("wrong\n")
    with Simulator(SimulatorConfig(rate=50, api_key="right")) as simulator:
        producer = pipeline.producer(
            simulator.url, symbols=["AAPL"], TWELVE_DATA_API_KEY="", TWELVE_DATA_API_KEY_FILE=str(key)
        )
        producer.wait_until_said("Twelve Data refuses the API key")
        key.write_text("right\n")
        wait_for(lambda: pipeline.appended() > 0)
        assert producer.stop() == 0


def test_dotenv_is_read_and_the_environment_overrides_it(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PRICE_STREAM=elsewhere\nCONSUMER_NAME=from-the-file\n")
    consumer = pipeline.consumer(CONSUMER_NAME="from-the-environment")
    consumer.wait_until_said("started: from-the-environment reads elsewhere in the group timescale")
    assert consumer.stop() == 0
