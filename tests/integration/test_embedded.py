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
from tests.support.homes import temporary_home
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
from tickpipe.local.servers.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1])) as servers:
    print(servers.redis_url, servers.database_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_home() as folder:
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


def test_a_restart_finds_what_was_written(home: Path) -> None:
    for value in (1, 2):
        with embedded_servers(home / "data") as servers:
            write(servers, value)
    with embedded_servers(home / "data") as servers:
        assert prices(servers) == ([1, 2], [1, 2])


def test_nothing_is_left_running_after_the_end_or_an_exception(home: Path) -> None:
    processes = []
    with suppress(ZeroDivisionError), embedded_servers(home / "data"):
        processes = server_processes(home / "data")
        1 / 0  # noqa: B018
    assert len(processes) == 2
    assert all(has_ended(process) for process in processes)


def test_only_what_is_asked_for_runs(home: Path) -> None:
    with embedded_servers(home / "data", database=False) as servers:
        assert servers.redis_url
        assert servers.database_url is None
    assert not (home / "data/postgres-18").exists()


@pytest.mark.parametrize("by_its_children_too", [True, False], ids=["whole server", "only its process"])
def test_what_was_acknowledged_survives_kill_9(home: Path, by_its_children_too: bool) -> None:
    valkey, postgres = ValkeyServer(home / "valkey"), PostgresServer(home / "postgres-18")
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


def test_a_kill_takes_the_servers_children_along(home: Path) -> None:
    server = PostgresServer(home / "postgres-18")
    server.start()
    everyone = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    assert len(everyone) > 3
    server.kill()
    assert server.pid is None
    wait_for(lambda: all(has_ended(process) for process in everyone))


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
def test_start_and_stop_can_be_repeated(home: Path, kind: AnyServer) -> None:
    server = kind(home / "server")
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
def test_servers_end_when_their_owner_is_killed(home: Path) -> None:
    with owner(home / "data") as process:
        processes = server_processes(home / "data")
        process.kill()
        wait_for(lambda: all(has_ended(server) for server in processes))


def test_a_start_right_after_the_owner_was_killed(home: Path) -> None:
    with owner(home / "data") as process:
        process.kill()
        process.wait()
        with embedded_servers(home / "data") as servers:
            write(servers, 1)
            assert prices(servers) == ([1], [1])


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
def test_a_server_left_by_a_dead_owner_is_stopped_first(home: Path, kind: AnyServer) -> None:
    left, server = kind(home / "server"), kind(home / "server")
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
def test_a_stale_pid_file_harms_nobody(home: Path, kind: AnyServer, content: str) -> None:
    server = kind(home / "server")
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
def test_a_process_that_only_mentions_the_data_folder_survives(
    home: Path, kind: AnyServer, arguments: list[str]
) -> None:
    server = kind(home / "server")
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


def test_a_half_made_database_is_not_taken_for_a_whole_one(home: Path) -> None:
    server = PostgresServer(home / "postgres-18")
    server.start()
    server.stop()
    data = server.folder / "data"
    shutil.rmtree(data / "base")  # as far as an initdb got that was killed
    data.rename(server.folder / "initdb-dead")
    server.start()
    assert run_sql(server.url, "SELECT 1") == [(1,)]
    server.stop()
    assert not (server.folder / "initdb-dead").exists()


def test_a_second_start_is_refused_in_one_line(home: Path) -> None:
    with embedded_servers(home / "data") as servers:
        assert f"{home}/data is in use by process {os.getpid()}:" in refusal(home / "data")
        write(servers, 1)


def test_another_process_is_refused_and_named(home: Path) -> None:
    with owner(home / "data") as process:
        assert f"is in use by process {process.pid}:" in refusal(home / "data")


def test_two_homes_side_by_side(home: Path) -> None:
    with embedded_servers(home / "demo") as demo, embedded_servers(home / "live") as live:
        write(demo, 1)
        write(live, 2)
        assert prices(demo) == ([1], [1])
        assert prices(live) == ([2], [2])


@pytest.mark.parametrize("name", ["long" * 40, "a space, a comma & 100 % ü"])
def test_a_path_that_no_socket_or_url_takes(home: Path, name: str) -> None:
    for value in (1, 2):
        with embedded_servers(home / name) as servers:
            write(servers, value)
            assert prices(servers)[1] == [*range(1, value + 1)]
            folders = [str(servers.redis_url).removeprefix("unix://").rpartition("/")[0]]
            assert len(folders[0]) < 80
            assert stat.S_IMODE(Path(folders[0]).stat().st_mode) == 0o700
    assert not Path(folders[0]).exists()


def test_a_socket_folder_made_by_somebody_else_is_refused(home: Path) -> None:
    server = ValkeyServer(home / ("long" * 40))
    folder = Path(server.url.removeprefix("unix://")).parent
    folder.symlink_to(home)
    try:
        with pytest.raises(ConfigurationError, match="is not a folder of user id"):
            server.start()
    finally:
        folder.unlink()


@pytest.mark.parametrize("older", ["sibling", "own folder"])
def test_data_of_another_major_version_are_refused(home: Path, older: str) -> None:
    folder = home / ("postgres-17" if older == "sibling" else "postgres-18")
    (folder / "data").mkdir(parents=True)
    (folder / "data/PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigurationError, match=r"holds data of PostgreSQL 17.*pg_dump.*psql") as refused:
        PostgresServer(home / "postgres-18").start()
    assert "\n" not in str(refused.value)


def test_an_older_sibling_beside_our_own_data_is_left_alone(home: Path) -> None:
    for _ in range(2):
        with embedded_servers(home, redis=False):
            pass
        (home / "postgres-17").mkdir(exist_ok=True)


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    server = ValkeyServer(home / "valkey", settings={"maxmemory": "much"})
    with pytest.raises(TickpipeError, match="argument must be a memory value"):
        server.start()
    assert server.pid is None
    with pytest.raises(TickpipeError, match="unrecognized configuration parameter"):
        PostgresServer(home / "postgres-18", settings={"no_such": "setting"}).start()


def test_a_database_that_cannot_be_made_says_why_in_lines_and_where_all_of_it_is(home: Path) -> None:
    server = PostgresServer(home / "postgres-18")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # bytes: to the server, as good as a full disk
    try:
        with pytest.raises(TickpipeError) as refused:
            server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    first, *lines, where = str(refused.value).splitlines()
    assert first == f"cannot create a database in {server.folder}:"
    assert 0 < len(lines) <= 6 < len(server.log.read_text().splitlines())
    assert lines == [f"  {line.rstrip()}" for line in server.log.read_text().splitlines() if line.strip()][-6:]
    assert where == f"Full log: {server.log}"


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer])
def test_a_start_that_is_stopped_leaves_nothing_running_and_the_next_works(
    home: Path, monkeypatch: pytest.MonkeyPatch, kind: AnyServer
) -> None:
    server, stop, pids = kind(home / "server"), threading.Event(), []

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


def test_a_server_that_never_answers_reports_its_last_reply(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PostgresServer(home / "postgres-18")
    server.start()
    server.stop()
    (server.folder / "data/pg_hba.conf").write_text("local all all reject\n")
    monkeypatch.setattr("tickpipe.local.servers.server.START_TIMEOUT", 0.5)
    with pytest.raises(TickpipeError, match=r"does not answer after .* \(pg_hba.conf rejects connection .*\):\n  "):
        server.start()
    assert server.pid is None


def test_settings_are_added(home: Path) -> None:
    server = ValkeyServer(home / "valkey", settings={"maxmemory": "20mb"})
    server.start()
    expected = {"maxmemory": "20971520", "maxmemory-policy": "noeviction", "appendfsync": "always", "save": ""}
    with closing(redis.Redis.from_url(server.url, decode_responses=True)) as client:
        assert client.config_get(*expected) == expected
    server.stop()


def test_the_database_is_as_promised(home: Path) -> None:
    server = PostgresServer(home / "postgres-18")
    server.start()
    names = ("server_encoding", "TimeZone", "fsync", "synchronous_commit", "data_checksums", "listen_addresses")
    assert run_sql(server.url, "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)) == [
        ("UTF8", "UTC", "on", "on", "on", "")
    ]
    assert run_sql(server.url, "SELECT current_user, datcollate, datlocprovider FROM pg_database LIMIT 1") == [
        ("tickpipe", "C", "c")
    ]
    server.stop()


def test_servers_have_a_session_of_their_own_and_none_of_our_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    with embedded_servers(home / "data") as servers:
        write(servers, 1)
        for process in server_processes(home / "data"):
            assert os.getsid(process.pid) == process.pid
            assert "PGPORT" not in process.environ()


def test_a_start_from_another_thread_is_refused(home: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            ValkeyServer(home / "valkey").start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_a_file_in_the_way_is_one_clear_line(home: Path) -> None:
    (home / "file").touch()
    assert "Not a directory" in refusal(home / "file/data")


def test_a_missing_wheel_is_one_clear_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValkeyServer, "package", "no_such_package")
    with pytest.raises(ConfigurationError, match="no_such_package is not installed"):
        ValkeyServer(home / "valkey")


def test_demo_and_live_have_different_homes() -> None:
    assert default_data_dir("demo") != default_data_dir("live")
    assert default_data_dir("demo").parts[-2:] == ("tickpipe", "demo")


@as_root
def test_root_runs_the_servers_as_nobody(home: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with embedded_servers(home / "data") as servers:
        write(servers, 1)
        assert [process.uids().effective for process in server_processes(home / "data")] == [nobody, nobody]
    for folder in ("valkey", "postgres-18"):
        found = (home / "data" / folder).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (nobody, 0o700)


@as_root
def test_a_folder_that_nobody_cannot_reach_is_refused(home: Path) -> None:
    (home / "private").mkdir(mode=0o700)
    said = refusal(home / "private/data")
    assert f"cannot reach {home}/private/data: use --data-dir /var/lib/tickpipe" in said


@as_root
def test_programs_that_nobody_cannot_reach_are_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = home / "private"
    private.mkdir(mode=0o700)
    for kind in (ValkeyServer, PostgresServer):
        wheel = kind(home / "x")._wheel
        for name in (wheel.name, f"{wheel.name}.libs"):
            if (wheel.parent / name).exists():
                shutil.copytree(wheel.parent / name, private / name)
    monkeypatch.setattr("tickpipe.local.servers.server.package_folder", private.joinpath)
    for value in (1, 2):
        with embedded_servers(home / "data") as servers:
            write(servers, value)
            for process in server_processes(home / "data"):
                assert process.exe().startswith(str(home / "data"))


@as_root
def test_a_normal_user_runs_them_as_himself(home: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    python = python_for(nobody.pw_uid)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    paths = ":".join(path for path in (str(ROOT), *sys.path) if path.endswith("site-packages") or path == str(ROOT))
    process = subprocess.run(
        [python, "-W", "error", "-c", OWNER, str(home / "of a user/data")],
        cwd="/",
        env={"PYTHONPATH": paths, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
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
    assert stat.S_IMODE((home / "of a user/data").stat().st_mode) == 0o700
    assert (home / "of a user/data/postgres-18/data/PG_VERSION").stat().st_uid == nobody.pw_uid


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
