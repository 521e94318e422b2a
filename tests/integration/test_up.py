"""`tickpipe up`: the whole pipeline on one machine."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from common.streams.group import ConsumerGroup
from tests.support.pipeline import GROUP, Database, Pipeline
from tests.support.processes import Processes, Running
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.dashboard import HOST, PORT
from tickpipe.local.servers.embedded import embedded_servers


@pytest.fixture
def up(processes: Processes, folder: Path) -> Callable[..., Running]:
    """Starts `tickpipe up` with a data folder in `folder`."""

    def start(*options: str, **environ: str) -> Running:
        usual = ["--data-dir", str(folder / "data"), "--rate", "200", "--no-dashboard"]
        return processes.start("tickpipe", "up", *usual, *options, **environ)

    return start


def url(up: Running, name: str) -> str:
    """One of the printed server URLs."""

    def find() -> re.Match[str] | None:
        assert up.status is None, up.said()
        return re.search(rf"export {name}='([^']+)'", up.said())

    return wait_for(find, 2 * PATIENCE, f"`up` prints {name}")[1]


def database(up: Running) -> Database:
    """The database of the running pipeline, after the first row."""
    found = Database(url(up, "DATABASE_URL"))
    wait_for(lambda: _has_rows(found), 2 * PATIENCE, "the first row")
    return found


def _has_rows(database: Database) -> bool:
    try:
        return database.count() > 0
    except psycopg2.Error:  # the table does not exist yet
        return False


def stored(up: Running) -> int:
    """The final count of stored prices, which must equal the received ones."""
    words = up.said().splitlines()[-1]
    found = re.fullmatch(r"received ([\d,]+) = stored ([\d,]+)", words)
    assert found, words
    assert found[1] == found[2]
    return int(found[1].replace(",", ""))


def family(up: Running) -> dict[psutil.Process, str]:
    """All child processes with the names of their programs."""
    found = {}
    for child in psutil.Process(up.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # database connections may end at any time
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


def test_up_stores_everything_and_leaves_nothing_running(up: Callable[..., Running], folder: Path) -> None:
    running = up("--for", "5")
    with closing(database(running)):
        assert "SIMULATED" in running.said()
        children = family(running)
        assert {"valkey-server", "postgres", "producer", "consumer"} <= set(children.values())

        second = up()
        assert second.wait() == 2
        assert second.said().splitlines() == [
            f"tickpipe: {folder}/data/demo is in use by process {running.pid}: stop it, or use another folder"
        ]
    assert running.wait() == 0
    assert stored(running) > 0
    assert [child for child in children if not ended(child)] == []
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["demo"]


def test_restarted_up_keeps_its_rows(up: Callable[..., Running], folder: Path) -> None:
    first = up()
    database(first).close()
    assert first.stop(PATIENCE) == 0
    before = stored(first)
    second = up()
    with closing(Database(url(second, "DATABASE_URL"))) as looking:
        wait_for(lambda: looking.count() > before, message="rows beside those of before")
    assert second.stop(PATIENCE) == 0
    with embedded_servers(folder / "data/demo") as servers, closing(Database(servers.database_url or "")) as looking:
        assert looking.count() == before + stored(second) > before > 0
        assert len(looking.query("SELECT DISTINCT session FROM prices_real_time")) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_up_cleanly(up: Callable[..., Running], number: signal.Signals) -> None:
    running = up()
    database(running).close()
    children = family(running)
    running.signal(number)
    assert running.wait() == 0
    assert stored(running) > 0
    assert [child for child in children if not ended(child)] == []


@pytest.mark.parametrize("table", ["prices_real_time", "feed_events"])
def test_killed_consumers_are_restarted_and_nothing_is_missing(
    up: Callable[..., Running], folder: Path, table: str
) -> None:
    running = up("--consumers", "2", CLAIM_IDLE="3")
    with closing(database(running)) as looking:
        with looking.locked(table):
            wait_for(looking.waiting, message="a consumer is within a batch")
            before = consumers(running)
            assert len(before) == 2
            for consumer in before:
                consumer.kill()
        wait_for(
            lambda: len([each for each in consumers(running) if each not in before]) == 2,
            message="two others are started",
        )
    running.signal(signal.SIGINT)  # before the entries of the others can be claimed
    assert running.wait() == 0
    total = stored(running)
    with embedded_servers(folder / "data/demo") as servers:
        with closing(Database(servers.database_url or "")) as looking:
            assert looking.query("SELECT count(*), count(DISTINCT seq), max(seq) FROM prices_real_time") == [
                (total, total, total)
            ]
            assert looking.query("SELECT detail -> 'last_seq' FROM feed_events WHERE event = 'stopped'") == [(total,)]
        with closing(redis.Redis.from_url(servers.redis_url or "")) as client:
            for key in ("prices", "prices:feed"):
                assert ConsumerGroup(client, key, GROUP).pending() == 0, f"something is left of {key}"


@pytest.mark.parametrize("program", ["valkey-server", "postgres"])
def test_killed_server_is_restarted_and_nothing_is_missing(up: Callable[..., Running], program: str) -> None:
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


def test_up_starts_and_stops_the_dashboard(up: Callable[..., Running]) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # otherwise the port is in use and another is chosen
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

    assert "SIMULATED" in wait_for(page, message="the page is there")
    assert len([program for program in family(running).values() if program == "tickpipe"]) == 1
    children = family(running)
    assert running.stop(PATIENCE) == 0
    assert stored(running) > 0
    assert [child for child in children if not ended(child)] == []


def test_killed_up_leaves_nothing_running(up: Callable[..., Running]) -> None:
    running = up()
    database(running).close()
    children = family(running)
    assert len(children) >= 5
    running.kill()
    wait_for(lambda: all(ended(child) for child in children), message="all its processes have ended")


@pytest.mark.parametrize(
    "names", [["DATABASE_URL"], ["REDIS_URL"], ["REDIS_URL", "DATABASE_URL"], ["DATABASE_URL_FILE"]]
)
def test_simulated_prices_are_not_mixed_with_real_ones(
    up: Callable[..., Running], folder: Path, empty_pipeline: Pipeline, tmp_path: Path, names: list[str]
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
    assert list(folder.iterdir()) == []


def test_simulate_option_allows_a_simulator_on_your_own_servers(
    up: Callable[..., Running], folder: Path, empty_pipeline: Pipeline
) -> None:
    pipeline = empty_pipeline
    running = up("--simulate", REDIS_URL=pipeline.servers.valkey.url, DATABASE_URL=pipeline.database.url)
    wait_for(lambda: _has_rows(pipeline.database), message="the first row")
    assert running.stop(PATIENCE) == 0
    assert "SIMULATED" in running.said()
    assert stored(running) == pipeline.database.count() > 0
    assert pipeline.nothing_pending()
    assert not list(folder.rglob("postgres*"))
    assert not list(folder.rglob("valkey*"))
