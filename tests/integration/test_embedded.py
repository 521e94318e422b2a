"""The embedded Valkey and PostgreSQL as applications use them: start, stop, restart and kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import redis

from tests.support.embedded import (
    AnyServer,
    has_ended,
    owner,
    prices,
    run_sql,
    server_processes,
    write,
)
from tests.support.waiting import wait_for
from tickpipe.local.servers.embedded import Servers, embedded_servers
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer


def test_restarted_servers_keep_their_data(folder: Path) -> None:
    for value in (1, 2):
        with embedded_servers(folder / "data") as servers:
            write(servers, value)
    with embedded_servers(folder / "data") as servers:
        assert prices(servers) == ([1, 2], [1, 2])


def test_no_server_runs_after_exit_or_an_exception(folder: Path) -> None:
    processes = []
    with suppress(ZeroDivisionError), embedded_servers(folder / "data"):
        processes = server_processes(folder / "data")
        1 / 0  # noqa: B018
    assert len(processes) == 2
    assert all(has_ended(process) for process in processes)


def test_only_requested_servers_run(folder: Path) -> None:
    with embedded_servers(folder / "data", database=False) as servers:
        assert servers.redis_url
        assert servers.database_url is None
    assert not (folder / "data/postgres-18").exists()


@pytest.mark.parametrize("by_its_children_too", [True, False], ids=["whole server", "only its process"])
def test_acknowledged_writes_survive_kill_9(folder: Path, by_its_children_too: bool) -> None:
    valkey, postgres = ValkeyServer(folder / "valkey"), PostgresServer(folder / "postgres-18")
    servers = Servers(valkey.url, postgres.url, lambda _: None)
    try:
        for value in range(3):
            for server in (valkey, postgres):
                server.start()
            write(servers, value)
            for server in (valkey, postgres):
                killed = server.pid
                assert killed
                if by_its_children_too:
                    server.kill()
                else:
                    os.kill(killed, signal.SIGKILL)
                    wait_for(lambda server=server: server.pid is None)  # type: ignore[misc]
                server.start()
                assert server.pid not in (None, killed)
            assert prices(servers) == ([*range(value + 1)], [*range(value + 1)])
    finally:
        valkey.stop()
        postgres.stop()


def test_kill_includes_child_processes(folder: Path) -> None:
    server = PostgresServer(folder / "postgres-18")
    server.start()
    everyone = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    assert len(everyone) > 3
    server.kill()
    assert server.pid is None
    wait_for(lambda: all(has_ended(process) for process in everyone))


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
def test_start_and_stop_can_be_repeated(folder: Path, kind: AnyServer) -> None:
    server = kind(folder / "server")
    server.stop()
    server.kill()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    assert server.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends them")
def test_servers_stop_when_their_owner_is_killed(folder: Path) -> None:
    with owner(folder / "data") as process:
        processes = server_processes(folder / "data")
        process.kill()
        wait_for(lambda: all(has_ended(server) for server in processes))


def test_servers_start_right_after_their_owner_was_killed(folder: Path) -> None:
    with owner(folder / "data") as process:
        process.kill()
        process.wait()
        with embedded_servers(folder / "data") as servers:
            write(servers, 1)
            assert prices(servers) == ([1], [1])


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
def test_server_left_by_a_dead_owner_is_stopped_first(folder: Path, kind: AnyServer) -> None:
    left, server = kind(folder / "server"), kind(folder / "server")
    left.start()
    assert left.pid
    process = psutil.Process(left.pid)
    server.start()
    assert has_ended(process)
    assert server.pid
    left.stop()
    server.stop()


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
@pytest.mark.parametrize("content", ["", "nonsense", "{ours}\n", "-{ours}\n", "99999999\n", "9" * 30])
def test_stale_pid_file_stops_no_other_process(folder: Path, kind: AnyServer, content: str) -> None:
    server = kind(folder / "server")
    server.start()
    server.kill()
    pid_file = server.folder / server.pid_file
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) as bystander:
        pid_file.write_text(content.format(ours=bystander.pid))
        try:
            server.start()
            assert bystander.poll() is None
        finally:
            server.stop()


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
@pytest.mark.parametrize("arguments", [["read line # {data} "], ["read line", "{data}"]], ids=["part", "argument"])
def test_process_that_only_mentions_the_data_folder_survives(
    folder: Path, kind: AnyServer, arguments: list[str]
) -> None:
    server = kind(folder / "server")
    server.start()
    server.kill()
    command = ["sh", "-c", *(each.format(data=server.folder / server.data) for each in arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as bystander:
        (server.folder / server.pid_file).write_text(f"{bystander.pid}\n")
        try:
            server.start()
            assert bystander.poll() is None
        finally:
            server.stop()


def test_incomplete_database_is_not_used(folder: Path) -> None:
    server = PostgresServer(folder / "postgres-18")
    server.start()
    server.stop()
    data = server.folder / "data"
    shutil.rmtree(data / "base")  # the state after a killed initdb
    data.rename(server.folder / "initdb-dead")
    server.start()
    assert run_sql(server.url, "SELECT 1") == [(1,)]
    server.stop()
    assert not (server.folder / "initdb-dead").exists()


def test_extra_settings_are_applied(folder: Path) -> None:
    server = ValkeyServer(folder / "valkey", settings={"maxmemory": "20mb"})
    server.start()
    expected = {"maxmemory": "20971520", "maxmemory-policy": "noeviction", "appendfsync": "always", "save": ""}
    with closing(redis.Redis.from_url(server.url, decode_responses=True)) as client:
        assert client.config_get(*expected) == expected
    server.stop()


def test_database_has_the_documented_settings(folder: Path) -> None:
    server = PostgresServer(folder / "postgres-18")
    server.start()
    names = ("server_encoding", "TimeZone", "fsync", "synchronous_commit", "data_checksums", "listen_addresses")
    assert run_sql(server.url, "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)) == [
        ("UTF8", "UTC", "on", "on", "on", "")
    ]
    assert run_sql(server.url, "SELECT current_user, datcollate, datlocprovider FROM pg_database LIMIT 1") == [
        ("tickpipe", "C", "c")
    ]
    server.stop()


def test_servers_have_their_own_process_session_and_a_clean_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    with embedded_servers(folder / "data") as servers:
        write(servers, 1)
        for process in server_processes(folder / "data"):
            assert os.getsid(process.pid) == process.pid
            assert "PGPORT" not in process.environ()
