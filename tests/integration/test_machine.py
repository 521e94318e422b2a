"""Conditions of the machine: environment variables, install layouts, the working folder, early signals."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg2
import pytest

from common.libpq import EMBEDDED
from tests.support.capture import make_events, ticks
from tests.support.folders import temporary_folder
from tests.support.http_proxy import http_proxy
from tests.support.pipeline import Pipeline
from tests.support.processes import Processes, Running
from tests.support.waiting import PATIENCE, wait_for

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t-p4ss"
SESSION = 1_760_000_000_000_000
#: Every variable of libpq 18 with a value that redirects a connection or makes it fail.
LIBPQ = {
    "PGAPPNAME": "other", "PGCHANNELBINDING": "require", "PGCLIENTENCODING": "SQL_ASCII", "PGCONNECT_TIMEOUT": "x",
    "PGDATABASE": "other", "PGDATESTYLE": "German", "PGGEQO": "x", "PGGSSDELEGATION": "1", "PGGSSENCMODE": "require",
    "PGGSSLIB": "x", "PGHOST": "192.0.2.1", "PGHOSTADDR": "192.0.2.1", "PGKRBSRVNAME": "x", "PGLOADBALANCEHOSTS": "x",
    "PGMAXPROTOCOLVERSION": "x", "PGMINPROTOCOLVERSION": "x", "PGOPTIONS": "-c search_path=nowhere",
    "PGPASSFILE": "/nowhere", "PGPASSWORD": "wrong", "PGPORT": "1", "PGREQUIREAUTH": "scram-sha-256",
    "PGREQUIREPEER": "other", "PGREQUIRESSL": "1", "PGSERVICE": "nowhere", "PGSERVICEFILE": "/nowhere",
    "PGSSLCERT": "/nowhere", "PGSSLCERTMODE": "require", "PGSSLCOMPRESSION": "x", "PGSSLCRL": "/nowhere",
    "PGSSLCRLDIR": "/nowhere", "PGSSLKEY": "/nowhere", "PGSSLMAXPROTOCOLVERSION": "TLSv1",
    "PGSSLMINPROTOCOLVERSION": "TLSv1.3", "PGSSLMODE": "verify-full", "PGSSLNEGOTIATION": "x",
    "PGSSLROOTCERT": "/nowhere", "PGSSLSNI": "x", "PGSYSCONFDIR": "/nowhere", "PGTARGETSESSIONATTRS": "standby",
    "PGTZ": "Asia/Kolkata", "PGUSER": "other", "PGDATA": "/nowhere",
}  # fmt: skip
#: The import path of this interpreter, for one without scripts.
WITH_OUR_PATH = f"import sys; sys.path[:] = {[str(ROOT), *filter(None, sys.path)]!r}; "
#: Blocks the main thread in a C library.
IN_A_QUERY = """
import sys, threading, psycopg2
from common import process
stop = process.stop_on_signals()
threading.Thread(target=lambda: (stop.wait(), print("stopping", flush=True)), daemon=True).start()
psycopg2.connect(sys.argv[1]).cursor().execute("SELECT pg_sleep(600)")
"""


@pytest.fixture
def data_folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


@pytest.fixture
def processes(tmp_path: Path, data_folder: Path) -> Iterator[Processes]:  # noqa: ARG001  they end before their data_folder goes
    with Processes(tmp_path, {}) as processes:
        yield processes


@pytest.fixture
def up(processes: Processes, data_folder: Path) -> Callable[..., Running]:
    """Starts `tickpipe up` with its data in `data_folder`."""

    def start(*options: str, **environ: str) -> Running:
        usual = ["--data-dir", str(data_folder / "data"), "--rate", "200", "--no-dashboard"]
        return processes.start("tickpipe", "up", *usual, *options, **environ)

    return start


def assert_stored(up: Running) -> None:
    """Check that the process exited with 0 and stored at least one price."""
    assert up.wait(2 * PATIENCE) == 0, up.said()
    found = re.fullmatch(r"received ([\d,]+) = stored ([\d,]+)", up.said().splitlines()[-1])
    assert found, up.said()
    assert found[1] == found[2] != "0"


def printed_urls(running: Running) -> dict[str, str]:
    running.wait_until_said("export DATABASE_URL=", 2 * PATIENCE)
    return dict(re.findall(r"export (\w+_URL)='([^']+)'", running.said()))


# Proxies.


def test_proxy_is_not_used_for_local_servers(up: Callable[..., Running]) -> None:
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    with http_proxy("403 Forbidden") as proxy:
        assert_stored(up("--for", "1", no_proxy="elsewhere", **dict.fromkeys(names, f"http://127.0.0.1:{proxy.port}")))
    assert proxy.requests == []


def test_up_shows_producer_errors_and_exits_1_without_a_price(up: Callable[..., Running]) -> None:
    with http_proxy("407 Proxy Authentication Required") as proxy:
        running = up(
            TWELVE_DATA_API_KEY="any",
            FEED_URL="wss://feed.invalid/prices",
            https_proxy=f"http://user:{SECRET}@127.0.0.1:{proxy.port}",
        )
        shown = (
            f"producer: failed CONNECT via proxy status: 407 (through the proxy 127.0.0.1:{proxy.port} (https_proxy))"
        )
        running.wait_until_said(f"ERROR {shown}", 2 * PATIENCE)
        running.signal(signal.SIGINT)
        assert running.wait() == 1
    first, last = running.said().splitlines()[-2:]
    assert first == "received 0 = stored 0"
    assert last.startswith(f"tickpipe: no price was received. {shown}")
    assert SECRET not in running.said()


@pytest.mark.parametrize("command", ["producer", "tickpipe"])
def test_invalid_proxy_exits_2(up: Callable[..., Running], processes: Processes, command: str) -> None:
    environ = {"TWELVE_DATA_API_KEY": "any", "HTTPS_PROXY": f"http://user:{SECRET}#@proxy:3128"}
    if command == "tickpipe":
        refused = up(**environ)
    else:
        refused = processes.start("producer", "--symbols", "AAPL", REDIS_URL="unix:///nowhere", **environ)
    assert refused.wait(2 * PATIENCE) == 2
    last = refused.said().splitlines()[-1]
    assert re.search(r"producer: HTTPS_PROXY: it is not a valid URL\. .*Percent-encode", last)
    assert SECRET not in refused.said()


# The variables of libpq.


def test_embedded_database_ignores_libpq_variables(
    up: Callable[..., Running], processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PGSERVICE=elsewhere\n")  # every process reads this variable
    running = up(**LIBPQ)
    urls = printed_urls(running)
    for command in ("migrate", "status", "verify"):
        process = processes.start("tickpipe", command, **LIBPQ, **urls)
        assert process.wait() == 0, process.said()
    consumer = processes.start("consumer", **LIBPQ, **urls)
    consumer.wait_until_said("reads prices in the group timescale")
    assert consumer.stop() == 0
    running.signal(signal.SIGINT)
    assert_stored(running)


def test_servers_command_ignores_libpq_variables(processes: Processes, data_folder: Path) -> None:
    running = processes.start("tickpipe", "servers", data_folder / "data", **LIBPQ)
    with closing(psycopg2.connect(printed_urls(running)["DATABASE_URL"])) as connection:
        assert connection.info.dbname == "tickpipe"
    assert running.stop(PATIENCE) == 0


# Install layouts and the working folder.


def test_up_needs_no_scripts_and_ignores_modules_in_the_working_folder(
    processes: Processes, tmp_path: Path, data_folder: Path
) -> None:
    python = Path(sys.base_prefix) / f"bin/python{sys.version_info.major}.{sys.version_info.minor}"
    assert not python.with_name("producer").exists()
    for name in ("common", "consumer", "producer", "redis", "json", "logging", "tickpipe"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py was imported')")
    options = ["up", "--for", "1", "--rate", "200", "--data-dir", str(data_folder / "data")]
    program = f"{WITH_OUR_PATH} sys.argv[0] = 'tickpipe'; from tickpipe.__main__ import main; main()"
    assert_stored(processes.start(python, "-P", "-c", program, *options))


# Signals while it starts.


def children(data_folder: Path) -> list[psutil.Process]:
    """The processes whose command line contains this data folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(data_folder) in " ".join(process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["up", "servers"])
def test_signal_during_initdb_stops_immediately_and_leaves_nothing(
    up: Callable[..., Running], processes: Processes, data_folder: Path, command: str, number: signal.Signals
) -> None:
    folder = data_folder / "data/demo"
    running = up() if command == "up" else processes.start("tickpipe", "servers", folder)
    wait_for(lambda: list(folder.glob("postgres-18/initdb-*")), 2 * PATIENCE, "initdb has begun")
    running.signal(number)
    assert running.wait() == 0
    assert "Traceback" not in running.said()
    assert children(data_folder) == []
    assert [path.name for path in folder.glob("postgres-18/*") if path.is_dir()] == []
    if number == signal.SIGTERM:
        again = processes.start("tickpipe", "servers", folder)
        printed_urls(again)
        assert again.stop(PATIENCE) == 0


@contextmanager
def migrations_locked(pipeline: Pipeline) -> Iterator[None]:
    with closing(psycopg2.connect(pipeline.database.url)) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE tickpipe_migrations IN ACCESS EXCLUSIVE MODE")
        yield


def test_signal_during_the_migration_stops_immediately(up: Callable[..., Running], pipeline: Pipeline) -> None:
    with migrations_locked(pipeline):
        running = up("--simulate", REDIS_URL=pipeline.servers.valkey.url, DATABASE_URL=pipeline.database.url)
        wait_for(pipeline.database.waiting, message="the migration waits for a lock")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert "received" not in running.said()


def test_signal_before_the_first_price_is_not_a_failure(up: Callable[..., Running], data_folder: Path) -> None:
    running = up("--rate", "0.1")
    wait_for((data_folder / "data/demo/logs/producer.log").exists, 2 * PATIENCE, "the producer has been started")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.said().splitlines()[-1] == "received 0 = stored 0"
    assert children(data_folder) == []


def test_signals_are_handled_while_the_main_thread_is_in_a_c_library(processes: Processes, pipeline: Pipeline) -> None:
    process = processes.start("python", "-c", IN_A_QUERY, pipeline.database.url, PYTHONPATH=str(ROOT))
    asleep = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    wait_for(lambda: pipeline.database.query(asleep), message="the query runs")
    process.signal(signal.SIGTERM)
    process.wait_until_said("stopping")
    process.signal(signal.SIGINT)
    assert process.wait() == 128 + signal.SIGINT


# An external database: libpq variables apply, but do not change results.

#: Settings that silently change how values are read or written.
HARMFUL = {
    "array_nulls": "off", "extra_float_digits": "-10", "IntervalStyle": "sql_standard", "DateStyle": "SQL,DMY",
    "TimeZone": "Asia/Kolkata", "standard_conforming_strings": "off", "bytea_output": "escape",
    "client_min_messages": "error", "synchronous_commit": "off", "transform_null_equals": "on",
    "default_transaction_isolation": "serializable", "search_path": "nowhere,public",
}  # fmt: skip


def test_libpq_variables_change_no_result_on_an_external_database(fresh_pipeline: Pipeline) -> None:
    pipeline = fresh_pipeline
    environ = {
        "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in HARMFUL.items()),
        "PGCLIENTENCODING": "LATIN1",
        "PGDATESTYLE": "German",
        "PGTZ": "America/St_Johns",
        "DATABASE_URL": pipeline.database.url.replace(f"application_name={EMBEDDED}&", ""),
    }
    events = make_events(20)
    events[0] |= {"price": 0.1 + 0.2, "symbol": "ŻÓŁĆ/'\\USD", "exchange": "Börse"}
    events[1] = {name: value for name, value in events[1].items() if name != "day_volume"}
    pipeline.append(list(ticks(events, SESSION)))
    consumer = pipeline.consumer(**environ)
    wait_for(lambda: pipeline.database.count() + pipeline.database.count("dead_letters") == len(events))
    assert consumer.stop() == 0
    assert pipeline.database.count("dead_letters") == 0
    pipeline.assert_stored_exactly(events)
    status = pipeline.processes.start("tickpipe", "status", "--json", **environ)
    assert status.wait() == 0
    prices = {each["symbol"]: each["price"] for each in json.loads(status.said())["symbols"]}
    assert prices["ŻÓŁĆ/'\\USD"] == 0.1 + 0.2
