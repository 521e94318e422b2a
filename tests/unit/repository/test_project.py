"""Lock files, make rules, workflows, the changelog and the docs site."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
LOCKS = ["requirements.lock", "requirements-build.lock", "requirements-dev.lock", "requirements-bench.lock"]
#: The lock file of the Docker image.
CORE = "requirements-core.lock"


def dry_run(target: str) -> str:
    """The commands of a make target in a fresh clone."""
    command = ["make", "--dry-run", "--always-make", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("target", "expected"),
    [("demo", LOCKS[:2]), ("setup", LOCKS[:2]), ("lint", LOCKS[:3]), ("test", LOCKS[:3]), ("bench", LOCKS)],
)
def test_make_targets_install_only_their_lock_files(target: str, expected: list[str]) -> None:
    assert re.findall(r"-r (\S+)", dry_run(target)) == expected


def requirements(lock: str) -> Iterator[tuple[str, str]]:
    """The requirements of a lock file with version and marker, and the lines below each."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in re.split(r"\n(?=\S)", text):
        yield block.partition(" \\\n")[0], block.strip()


def test_image_has_the_versions_of_the_demo() -> None:
    assert set(requirements(CORE)) < set(requirements("requirements.lock"))


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_have_hashes_and_one_version_per_package(lock: str) -> None:
    assert [name for name, block in requirements(lock) if "--hash=sha256:" not in block] == []
    wanted = {name for each in LOCKS[: LOCKS.index(lock) + 1] for name, _ in requirements(each)}
    packages = [name.partition("==")[0] for name in wanted if ";" not in name]
    assert sorted(name for name in packages if packages.count(name) > 1) == []


def read(name: str) -> dict[str, Any]:
    """A YAML file of the repository."""
    document: dict[str, Any] = YAML(typ="safe").load(ROOT / name)
    return document


def test_actions_are_pinned_by_commit_with_a_version_comment() -> None:
    lines = [line for path in WORKFLOWS for line in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))]
    pins = [re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+", line) for line in lines]
    assert [line for line, pin in zip(lines, pins, strict=True) if not pin] == []
    commits: dict[str, set[str]] = {}
    for pin in pins:
        if pin:
            commits.setdefault(pin[1], set()).add(pin[2])
    assert len(commits) > 5
    assert {action: found for action, found in commits.items() if len(found) > 1} == {}


def test_workflows_are_read_only_by_default() -> None:
    assert [path.name for path in WORKFLOWS if read(str(path)).get("permissions") != {"contents": "read"}] == []
    jobs = read(".github/workflows/release.yml")["jobs"]
    granted = {name: job["permissions"] for name, job in jobs.items() if "permissions" in job}
    assert granted == {"pypi": {"id-token": "write"}, "image": {"contents": "read", "packages": "write"}}
    assert jobs["pypi"]["environment"] == "pypi"


def test_the_release_checks_its_tag_before_it_publishes() -> None:
    jobs = read(".github/workflows/release.yml")["jobs"]
    runs = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert any('"$GITHUB_REF_NAME" = "v$(hatchling version)"' in run for run in runs)
    assert (jobs["pypi"]["needs"], jobs["image"]["needs"]) == ("build", "pypi")


def test_dependabot_follows_each_kind_of_dependency() -> None:
    updates = read(".github/dependabot.yml")["updates"]
    followed = {each["package-ecosystem"]: ROOT / each["directory"].strip("/") for each in updates}
    assert followed.keys() == {"pip", "github-actions", "docker", "npm"}
    assert (followed["pip"] / "pyproject.toml").exists()
    assert (followed["docker"] / "Dockerfile").exists()
    assert (followed["npm"] / "package.json").exists()


def test_changelog_versions_have_dates_and_links() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *released = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    headings = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    versions = [heading[1] for heading in headings if heading]
    assert len(versions) == len(released)
    assert PYPROJECT["project"]["version"] in versions
    links = re.findall(r"^\[(.+)\]: (\S+)$", text, re.MULTILINE)
    compared = [f"../../compare/v{old}...v{new}" for new, old in pairwise(versions)]
    targets = [f"../../compare/v{versions[0]}...HEAD", *compared, f"../../releases/tag/v{versions[-1]}"]
    assert links == list(zip(["Unreleased", *versions], targets, strict=True))


def test_pre_commit_runs_tools_of_make_lint() -> None:
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    entries = {hook["id"]: hook["entry"].partition(" --")[0] for hook in repo["hooks"]}
    assert entries.keys() == {"ruff", "ruff-format", "mypy", "codespell", "prose"}
    lint = dry_run("lint")
    assert [entry for entry in entries.values() if entry not in lint] == []


def test_readme_shows_the_floor_of_coverage() -> None:
    floor = PYPROJECT["tool"]["coverage"]["report"]["fail_under"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"**Branch coverage: at least {floor} %**" in text
    assert "coverage report" in dry_run("test")
