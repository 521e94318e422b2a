"""The files around the code: lock files, make rules, workflows, changelog and the docs site."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["requirements.lock", "requirements-build.lock", "requirements-dev.lock", "requirements-bench.lock"]


def dry_run(target: str) -> str:
    """The commands that make would run for a target in a fresh clone."""
    command = ["make", "--dry-run", "--always-make", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("target", "expected"),
    [("demo", LOCKS[:2]), ("setup", LOCKS[:2]), ("lint", LOCKS[:3]), ("test", LOCKS[:3]), ("bench", LOCKS)],
)
def test_each_make_target_installs_only_the_lock_files_that_it_needs(target: str, expected: list[str]) -> None:
    assert re.findall(r"-r (\S+)", dry_run(target)) == expected


def requirements(lock: str) -> Iterator[tuple[str, str]]:
    """The requirements of a lock file: each with its version and marker, and all lines below it."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in re.split(r"\n(?=\S)", text):
        yield block.partition(" \\\n")[0], block


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_have_hashes_and_take_no_package_in_two_versions(lock: str) -> None:
    assert [name for name, block in requirements(lock) if "--hash=sha256:" not in block] == []
    wanted = {name for each in LOCKS[: LOCKS.index(lock) + 1] for name, _ in requirements(each)}
    packages = [name.partition("==")[0] for name in wanted if ";" not in name]
    assert sorted(name for name in packages if packages.count(name) > 1) == []
