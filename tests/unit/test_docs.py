"""What the pages say is there: links, named files, make targets, commands with their options and variables."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from consumer.cli import app as consumer
from producer.cli import app as producer
from tickpipe.cli import app as tickpipe

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"TWELVE_DATA_API_KEY", "REDIS_URL", "DATABASE_URL"}
#: Put together here, so that this file does not name them.
REGISTRIES = ["pypi" + ".org", "files.python" + "hosted.org", "registry." + "npmjs.org"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def in_git() -> list[Path]:
    """The files in git, and those that would be added."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


FILES = in_git()
PAGES = [path for path in FILES if path.suffix == ".md"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(words: str, command: Any) -> dict[str, Any]:
    """The command, and those below it, by the words that start each."""
    below = getattr(command, "commands", {})
    found = {name: each for sub, each in below.items() for name, each in commands(f"{words} {sub}", each).items()}
    return {words: command, **found}


COMMANDS = {
    name: command
    for words, app in {"producer": producer, "consumer": consumer, "tickpipe": tickpipe}.items()
    for name, command in commands(words, typer.main.get_command(app)).items()
}


def options(command: Any) -> set[str]:
    return {"--help", *(opt for param in command.params for opt in (*param.opts, *param.secondary_opts))}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def code(page: Path) -> Iterator[str]:
    """The lines of shell and console blocks, joined where they go on, and what stands in backticks."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "sh":
            yield from lines
        elif language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
    yield from spans(page)


def spans(page: Path) -> Iterator[str]:
    """What stands in backticks outside of blocks."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text))


def calls(line: str) -> Iterator[list[str]]:
    """The commands in a line of shell, without variables set before them and without the environment's folder."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # no shell: an apostrophe
        return
    call: list[str] = []
    for word in [*words, ";"]:
        if word in {";", "|", "||", "&", "&&"}:
            if call:
                yield call
            call = []
        elif call or not re.match(r"[A-Z_]+=", word):
            call.append(word if call else word.removeprefix(".venv/bin/"))


def wrong(call: list[str]) -> str | None:
    """What is wrong with a call of ours; None for all others."""
    name, *words = call
    if name == "make":
        unknown = [word for word in words if "=" not in word and word not in make_targets()]
        return f"no make target {unknown}" if unknown else None
    if name not in COMMANDS:
        return None
    while hasattr(COMMANDS[name], "commands") and words and re.fullmatch(r"[a-z-]+", words[0]) and words[0][0] != "-":
        name = f"{name} {words.pop(0)}"
        if name not in COMMANDS:
            return f"no command {name}"
    named = {word.partition("=")[0] for word in words if word.startswith("--")}
    unknown = sorted(named - options(COMMANDS[name]))
    return f"{name} has no {unknown}" if unknown else None


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pages
def test_named_files_exist(page: Path) -> None:
    names = [
        span for span in spans(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.(py|sql|md|toml|lock|svg|ya?ml))", span)
    ]
    known = {path.name for path in FILES} | {"live/", "demo/"}
    there = [name for name in names if (ROOT / name).exists() or name in known or "NNNN" in name]
    assert sorted(set(names) - set(there)) == []


@pages
def test_commands_exist_with_their_options(page: Path) -> None:
    found = [f"{line}: {fault}" for line in code(page) for call in calls(line) if (fault := wrong(call))]
    assert found == []


@pages
def test_options_named_alone_are_of_some_command(page: Path) -> None:
    known = set().union(*(options(command) for command in COMMANDS.values()))
    assert [span for span in spans(page) if re.match(r"--[a-z]", span) and span.split()[0] not in known] == []


def test_readme_shows_every_variable_with_its_option() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(--[a-z-]+)`)? ?\|", readme, re.MULTILINE)
    assert {name for name, option in rows if not option} == SECRETS
    variables = {
        (str(param.envvar), param.opts[0]) for command in COMMANDS.values() for param in command.params if param.envvar
    }
    assert {(name, option) for name, option in rows if option} == variables


def test_readme_shows_the_defaults() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `([A-Z_]+)` \|[^|]*\|[^|]*\| `([^`]+)`", readme, re.MULTILINE))
    defaults = {
        str(param.envvar): f"{param.default:g}" if isinstance(param.default, float) else str(param.default)
        for name in ("producer", "consumer")
        for param in COMMANDS[name].params
        if param.envvar in shown
    }
    assert len(defaults) >= 8
    assert {name: shown[name] for name in defaults} == defaults


def test_wrong_calls_are_found() -> None:
    lines = {
        "make tea": "no make target ['tea']",
        "make test PYTHON=python3.12": None,
        "X=1 .venv/bin/tickpipe up --for 20 && .venv/bin/producer --no-such": "producer has no ['--no-such']",
        "tickpipe fly": "no command tickpipe fly",
        "docker compose up --scale consumer=3": None,
    }
    for line, expected in lines.items():
        assert [fault for call in calls(line) if (fault := wrong(call))] == ([expected] if expected else []), line


@pytest.mark.parametrize("host", REGISTRIES)
def test_no_file_names_a_registry(host: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in FILES if host.encode() in path.read_bytes()] == []


def test_the_tests_that_the_pages_name_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    sources = "".join(path.read_text(encoding="utf-8") for path in FILES if path.name.startswith("test_"))
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()
