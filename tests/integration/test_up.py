"""`tickpipe up`, the whole pipeline in one command; and how the commands refuse what cannot work."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from common.streams.group import ConsumerGroup
from tests.support.homes import temporary_home
from tests.support.pipeline import GROUP, Database, Pipeline
from tests.support.processes import Processes, Running
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.dashboard import HOST, PORT
from tickpipe.local.servers.embedded import embedded_servers
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer
from tickpipe.simulator.websocket import Simulator, SimulatorConfig

SECRET = "s3cr/t+word"


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_home() as folder:
        yield folder


@pytest.fixture
def processes(tmp_path: Path, home: Path) -> Iterator[Processes]:  # noqa: ARG001  they end before their home goes
    with Processes(tmp_path, {}) as processes:
        yield processes


@pytest.fixture
def up(processes: Processes, home: Path) -> Callable[..., Running]:
    """Starts `tickpipe up` with its data in `home`."""

    def start(*options: str, **environ: str) -> Running:
        usual = ["--data-dir", str(home / "data"), "--rate", "200", "--no-dashboard"]
        return processes.start("tickpipe", "up", *usual, *options, **environ)

    return start


def url(up: Running, name: str) -> str:
    """One of the URLs that it prints for other terminals."""

    def find() -> re.Match[str] | None:
        assert up.status is None, up.said()
        return re.search(rf"export {name}='([^']+)'", up.said())

    return wait_for(find, 2 * PATIENCE, f"`up` prints {name}")[1]


def database(up: Running) -> Database:
    """The database of a pipeline that runs, once it has rows."""
    found = Database(url(up, "DATABASE_URL"))
    wait_for(lambda: _has_rows(found), 2 * PATIENCE, "the first row")
    return found


def _has_rows(database: Database) -> bool:
    try:
        return database.count() > 0
    except psycopg2.Error:  # there is no table yet
        return False


def stored(up: Running) -> int:
    """Received and stored, which are the same, as it says at its end."""
    words = up.said().splitlines()[-1]
    found = re.fullmatch(r"received ([\d,]+) = stored ([\d,]+)", words)
    assert found, words
    assert found[1] == found[2]
    return int(found[1].replace(",", ""))


def family(up: Running) -> dict[psutil.Process, str]:
    """The processes that it has started, and those that they have started: the name of each one's program."""
    found = {}
    for child in psutil.Process(up.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a connection of the database ends at any time
            if command := child.cmdline():
                module = command[command.index("-m") + 1] if "-m" in command else command[0]
                found[child] = Path(module).name
    return found


def consumers(up: Running) -> list[psutil.Process]:
    return [process for process, program in family(up).items() if program == "consumer"]


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# The whole pipeline.


def test_up_stores_all_that_it_receives_and_leaves_nothing_running(up: Callable[..., Running], home: Path) -> None:
    running = up("--for", "5")
    with closing(database(running)):
        assert "SIMULATED" in running.said()
        children = family(running)
        assert {"valkey-server", "postgres", "producer", "consumer"} <= set(children.values())

        second = up()
        assert second.wait() == 2
        assert second.said().splitlines() == [
            f"tickpipe: {home}/data/demo is in use by process {running.pid}: stop it, or use another folder"
        ]
    assert running.wait() == 0
    assert stored(running) > 0
    assert [child for child in children if not ended(child)] == []
    assert sorted(path.name for path in (home / "data").iterdir()) == ["demo"]


def test_a_restart_finds_the_rows_of_before(up: Callable[..., Running], home: Path) -> None:
    first = up()
    database(first).close()
    assert first.stop(20) == 0
    before = stored(first)
    second = up()
    with closing(Database(url(second, "DATABASE_URL"))) as looking:
        wait_for(lambda: looking.count() > before, 20, "rows beside those of before")
    assert second.stop(20) == 0
    with embedded_servers(home / "data/demo") as servers, closing(Database(servers.database_url or "")) as looking:
        assert looking.count() == before + stored(second) > before > 0
        assert len(looking.query("SELECT DISTINCT session FROM prices_real_time")) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_cleanly(up: Callable[..., Running], number: signal.Signals) -> None:
    running = up()
    database(running).close()
    children = family(running)
    running.signal(number)
    assert running.wait() == 0
    assert stored(running) > 0
    assert [child for child in children if not ended(child)] == []


@pytest.mark.parametrize("table", ["prices_real_time", "feed_events"])
def test_consumers_that_are_killed_are_started_again_and_nothing_is_missing(
    up: Callable[..., Running], home: Path, table: str
) -> None:
    running = up("--consumers", "2", CLAIM_IDLE="3")
    with closing(database(running)) as looking:
        with looking.locked(table):
            wait_for(looking.waiting, message="a consumer is in the middle of a block")
            before = consumers(running)
            assert len(before) == 2
            for consumer in before:
                consumer.kill()
        wait_for(
            lambda: len([each for each in consumers(running) if each not in before]) == 2,
            message="two others are started",
        )
    running.signal(signal.SIGINT)  # while what the others held is not yet due to be claimed
    assert running.wait() == 0
    total = stored(running)
    with embedded_servers(home / "data/demo") as servers:
        with closing(Database(servers.database_url or "")) as looking:
            assert looking.query("SELECT count(*), count(DISTINCT seq), max(seq) FROM prices_real_time") == [
                (total, total, total)
            ]
            assert looking.query("SELECT detail -> 'last_seq' FROM feed_events WHERE event = 'stopped'") == [(total,)]
        with closing(redis.Redis.from_url(servers.redis_url or "")) as client:
            for key in ("prices", "prices:feed"):
                assert ConsumerGroup(client, key, GROUP).pending() == 0, f"something is left of {key}"


@pytest.mark.parametrize("program", ["valkey-server", "postgres"])
def test_a_server_that_is_killed_is_started_again_and_nothing_is_missing(
    up: Callable[..., Running], program: str
) -> None:
    running = up()
    database(running).close()
    (server,) = [each for each, name in family(running).items() if name == program and each.ppid() == running.pid]
    server.kill()
    wait_for(
        lambda: any(name == program and each != server for each, name in family(running).items()),
        message="another is started",
    )
    before = database(running)
    with closing(before):
        rows = before.count()
        wait_for(lambda: before.count() > rows, message="prices are stored again")
    assert running.stop(PATIENCE) == 0
    assert stored(running) > 0


def test_up_serves_the_dashboard_and_ends_it(up: Callable[..., Running]) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # else another has it: taken is taken
            stack.enter_context(socket.create_server((HOST, PORT)))
        running = up("--dashboard")
        database(running).close()
    found = re.search(rf"dashboard: http://{HOST}:(\d+)", running.said())
    assert found
    assert int(found[1]) != PORT

    def page() -> str:
        with suppress(OSError), closing(HTTPConnection(HOST, int(found[1]), timeout=5)) as connection:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        return ""

    assert "SIMULATED" in wait_for(page, 20, "the page is there")
    assert len([program for program in family(running).values() if program == "tickpipe"]) == 1
    children = family(running)
    assert running.stop(20) == 0
    assert stored(running) > 0
    assert [child for child in children if not ended(child)] == []


def test_when_up_is_killed_nothing_of_it_is_left_running(up: Callable[..., Running]) -> None:
    running = up()
    database(running).close()
    children = family(running)
    assert len(children) >= 5
    running.kill()
    wait_for(lambda: all(ended(child) for child in children), 20, "all its processes have ended")


# Simulated and real prices never share a home.


@pytest.mark.parametrize(
    "names", [["DATABASE_URL"], ["REDIS_URL"], ["REDIS_URL", "DATABASE_URL"], ["DATABASE_URL_FILE"]]
)
def test_simulated_prices_do_not_go_among_your_own_by_mistake(
    up: Callable[..., Running], home: Path, empty_pipeline: Pipeline, tmp_path: Path, names: list[str]
) -> None:
    pipeline = empty_pipeline
    urls = {"REDIS_URL": pipeline.servers.valkey.url, "DATABASE_URL": pipeline.database.url}
    urls["DATABASE_URL_FILE"] = str(tmp_path / "url")
    (tmp_path / "url").write_text(urls["DATABASE_URL"])
    refused = up("--for", "1", **{name: urls[name] for name in names})
    assert refused.wait() == 2
    (words,) = refused.said().splitlines()
    assert "there is no API key" in words
    assert "--simulate" in words
    assert pipeline.database.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    assert pipeline.redis.dbsize() == 0
    assert list(home.iterdir()) == []


def test_simulate_says_that_it_is_meant(up: Callable[..., Running], home: Path, empty_pipeline: Pipeline) -> None:
    pipeline = empty_pipeline
    running = up("--simulate", REDIS_URL=pipeline.servers.valkey.url, DATABASE_URL=pipeline.database.url)
    wait_for(lambda: _has_rows(pipeline.database), 20, "the first row")
    assert running.stop(20) == 0
    assert "SIMULATED" in running.said()
    assert stored(running) == pipeline.database.count() > 0
    assert pipeline.nothing_pending()
    assert not list(home.rglob("postgres*"))
    assert not list(home.rglob("valkey*"))


# What cannot work ends at once, with one clear line.


def refusal(process: Running) -> str:
    """The one line with which it has refused to work: status 2, no traceback, and no secret wherever one looks."""
    assert process.wait() == 2
    assert "Traceback" not in process.said()
    for secret in (SECRET, "s3cr%2Ft%2Bword", "s3cr"):
        assert secret not in process.said()
    (words,) = process.last_log_line()
    assert words == process.said().splitlines()[-1]
    return words


def test_a_wrong_password_of_the_database(processes: Processes, home: Path, pipeline: Pipeline) -> None:
    server = PostgresServer(home / "postgres-18")
    server.start()
    try:
        with closing(Database(server.url)) as admin:
            admin.query("CREATE ROLE writer LOGIN PASSWORD 'right'")
            rules = home / "postgres-18/data/pg_hba.conf"
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
def test_a_wrong_password_of_redis(processes: Processes, home: Path, pipeline: Pipeline, command: str) -> None:
    server = ValkeyServer(home / "valkey", settings={"requirepass": "right"})
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


def test_a_refused_key(pipeline: Pipeline) -> None:
    with Simulator(SimulatorConfig(api_key="right")) as simulator:
        producer = pipeline.producer(
            simulator.url, "--log-level", "DEBUG", symbols=["AAPL"], TWELVE_DATA_API_KEY=SECRET
        )
        words = refusal(producer)
    assert words == "producer: Twelve Data refuses the API key: check TWELVE_DATA_API_KEY."


def test_symbols_that_are_all_refused(pipeline: Pipeline) -> None:
    with Simulator(SimulatorConfig()) as simulator:
        producer = pipeline.producer(simulator.url, symbols=["NOSUCH", "NORTHIS"])
        words = refusal(producer)
    assert words.startswith("producer: none of the symbols can be subscribed: NORTHIS (")
    assert "NOSUCH (" in words


REFUSED: list[tuple[list[str], Mapping[str, str], str]] = [
    (["producer", "--symbols", "AAPL"], {"TWELVE_DATA_API_KEY": ""}, "producer: no API key: set TWELVE_DATA_API_KEY"),
    (["producer"], {}, "producer: no symbols: name some"),
    (["producer", "--symbols", " , "], {}, "producer: no symbols: name some"),
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
    (["producer", "--symbols", "AAPL", "--log-level", "loud"], {}, "producer: LOG_LEVEL 'loud' is unknown"),
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
def test_a_setting_that_cannot_work(
    processes: Processes, command: list[str], environ: Mapping[str, str], words: str
) -> None:
    defaults = {"TWELVE_DATA_API_KEY": "any", "REDIS_URL": "unix:///nowhere"}
    assert refusal(processes.start(*command, **{**defaults, **environ})).startswith(words)


def test_a_key_in_a_file_is_read_again_at_every_connect(pipeline: Pipeline, tmp_path: Path) -> None:
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


def test_a_dotenv_in_the_working_folder_is_read_and_the_environment_wins(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PRICE_STREAM=elsewhere\nCONSUMER_NAME=from-the-file\n")
    consumer = pipeline.consumer(CONSUMER_NAME="from-the-environment")
    consumer.wait_until_said("from-the-environment reads elsewhere in the group timescale")
    assert consumer.stop() == 0
