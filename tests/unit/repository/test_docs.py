"""The documentation names only links, files, make targets, commands, options and variables that exist."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer.main
from ruamel.yaml import YAML

from consumer.cli import app as consumer
from producer.cli import app as producer
from tests.support.pages import blocks
from tickpipe.cli.app import app as tickpipe

ROOT = Path(__file__).resolve().parents[3]
SECRETS = {"TWELVE_DATA_API_KEY", "REDIS_URL", "DATABASE_URL", "DATABASE_URLS", "IMPORT_DATABASE_URL"}
#: Joined here, so that this file does not contain the names.
REGISTRIES = ["pypi" + ".org", "files.python" + "hosted.org", "registry." + "npmjs.org"]

#: Folders in the data folder of `tickpipe up`.
FOLDERS = {"live/", "demo/", "postgres-18/", "valkey/", "spool/", "logs/"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def in_git() -> list[Path]:
    """The files in git, and new files that git does not ignore."""
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
    """The command and its subcommands, by the full name that starts each."""
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
    """The commands of shell and console blocks, continuation lines joined, and the code spans."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "sh":
            yield from lines
        elif language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
    yield from spans(page)


def spans(page: Path) -> Iterator[str]:
    """The code spans outside of fenced blocks."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text))


def calls(line: str) -> Iterator[list[str]]:
    """The commands in a line of shell, without leading variable assignments and without `.venv/bin/`."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose with an apostrophe
        return
    call: list[str] = []
    for word in [*words, ";"]:
        if word in {";", "|", "||", "&", "&&"}:
            if call:
                yield call
            call = []
        elif call or not re.match(r"[A-Z_]+=", word):
            call.append(word if call else word.removeprefix(".venv/bin/"))


def call_error(call: list[str]) -> str | None:
    """The error in a call of make or of a tickpipe command; None if there is none."""
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


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; a repeated heading gets the suffix -1."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return {name if not (before := found[:n].count(name)) else f"{name}-{before}" for n, name in enumerate(found)}


def broken_links(page: Path) -> list[str]:
    """The links of a page to files and headings that do not exist."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pages
def test_links_point_to_existing_files_and_headings(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_detected(tmp_path: Path) -> None:
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# Redis's `memory`: a look\n## Twice\n## Twice\n```sh\n# Comment\n```\n")
    links = ["other.md", "other.md#rediss-memory-a-look", "other.md#twice-1", "#here", "https://example.com/#x"]
    missing = ["others.md", "other.md#comment", "other.md#twice-2", "#there"]
    page.write_text("# Here\n" + "".join(f"[x]({link})\n" for link in links + missing))
    assert broken_links(page) == missing


@pages
def test_named_files_exist(page: Path) -> None:
    names = [
        span for span in spans(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.(py|sql|md|toml|lock|svg|ya?ml))", span)
    ]
    known = {path.name for path in FILES} | FOLDERS
    existing = [name for name in names if (ROOT / name).exists() or name in known or "NNNN" in name]
    assert sorted(set(names) - set(existing)) == []


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    errors = [f"{line}: {error}" for line in code(page) for call in calls(line) if (error := call_error(call))]
    assert errors == []


@pages
def test_each_option_in_the_text_belongs_to_a_command(page: Path) -> None:
    known = set().union(*(options(command) for command in COMMANDS.values()))
    assert [span for span in spans(page) if re.match(r"--[a-z]", span) and span.split()[0] not in known] == []


def test_the_configuration_page_lists_every_variable_with_its_option() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(--[a-z-]+)`)? ?\|", page, re.MULTILINE)
    assert {name for name, option in rows if not option} == SECRETS
    variables = {
        (str(param.envvar), param.opts[0]) for command in COMMANDS.values() for param in command.params if param.envvar
    }
    assert {(name, option) for name, option in rows if option} == variables


def test_the_configuration_page_shows_the_defaults() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `([A-Z_]+)` \|[^|]*\|[^|]*\| `([^`]+)`", page, re.MULTILINE))
    defaults = {
        str(param.envvar): f"{param.default:g}" if isinstance(param.default, float) else str(param.default)
        for name in ("producer", "consumer")
        for param in COMMANDS[name].params
        if param.envvar in shown
    }
    assert len(defaults) >= 8
    assert {name: shown[name] for name in defaults} == defaults


#: Variables on the pages that belong to other programs, to the tests or to the page itself.
OTHERS = {
    "PATH",
    "PYTHON",
    "CI",
    "MINUTES",
    "SEED",
    "CLUSTER",
    "FAILOVERS",
    "OPTIONS",
    "LIVE",
    "REDIS_DATA",
    "BACKUP",
    "POSTGRES_PASSWORD",
}
OTHERS |= {"GRAFANA_PASSWORD", "DISK_ALERT_GB", "DASHBOARD_SHOT", "DASHBOARD_SHOTS", "TIMESCALEDB_URL"}  # of the tests
OTHERS |= {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "SSL_CERT_FILE",
    "COMPOSE_FILE",
    "COMPOSE_PROFILES",
    "PGPASSWORD",
}  # OpenSSL's, Compose's, libpq's
OTHERS |= {"UPGRADE", "IMAGE_REGISTRY"}  # of make and of the release workflow


def unknown_variables(text: str) -> set[str]:
    """Variables that a page sets, reads or names, and that no command has."""
    named = set(re.findall(r"\$\{?([A-Z][A-Z_]+)\b|\b([A-Z][A-Z_]{2,})=|`([A-Z]+_[A-Z_]+)`", text))
    names = {name for found in named for name in found if name}
    ours = {str(param.envvar) for command in COMMANDS.values() for param in command.params if param.envvar}
    return names - ours - SECRETS - {f"{name}_FILE" for name in SECRETS} - OTHERS


@pages
def test_each_variable_belongs_to_a_command(page: Path) -> None:
    assert unknown_variables(page.read_text(encoding="utf-8")) == set()


def test_unknown_variables_are_detected() -> None:
    assert unknown_variables("`SPOOL_DIR` $SPOOL_DIRS X_Y=1 `CLAIM_IDEL`") == {"SPOOL_DIRS", "X_Y", "CLAIM_IDEL"}


#: The subcommands of docker compose on the pages: their options, and whether only the first argument is a service.
DOCKER = {
    "up": ({"--build", "--detach", "--scale"}, False),
    "down": ({"--volumes"}, False),
    "start": (set(), False),
    "stop": (set(), False),
    "logs": ({"--follow"}, False),
    "exec": (set(), True),
}


def docker_error(call: list[str], services: dict[str, Any]) -> str | None:
    """The error in a call of docker compose; None if there is none."""
    if call[:1] != ["docker"]:
        return None
    if call[2:3] == ["--profile"]:
        call = call[:2] + call[4:]
    if call[1:2] != ["compose"] or call[2:3] == [] or call[2] not in DOCKER:
        return f"unknown call: {call}"
    (known, is_command), words = DOCKER[call[2]], call[3:]
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option not in known:
            return f"docker compose {call[2]}: unknown option {option}"
        if option == "--scale":
            words[0] = words[0].partition("=")[0]
            if words[0] not in services or "container_name" in services[words[0]]:
                return f"{words[0]} cannot be scaled"
            words.pop(0)
    named = words[:1] if is_command else words
    unknown = [word for word in named if word not in services]
    return f"no service {unknown}" if unknown or (is_command and not words) else call_error(words[1:] or [""])


@cache
def compose_services() -> dict[str, Any]:
    services: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
    return services


@pages
def test_compose_commands_name_existing_services(page: Path) -> None:
    services = compose_services()
    errors = [f"{line}: {error}" for line in code(page) for c in calls(line) if (error := docker_error(c, services))]
    assert errors == []


def test_wrong_compose_commands_are_detected() -> None:
    lines = {
        "docker compose up --build --detach --scale consumer=3": True,
        "docker compose up --scale consumers=3": False,
        "docker compose up --no-such": False,
        "docker compose logs --follow producers": False,
        "docker compose exec consumer tickpipe status": True,
        "docker compose exec consumer tickpipe fly": False,
        "docker run tickpipe": False,
    }
    services = compose_services()
    found = {line: not any(docker_error(call, services) for call in calls(line)) for line in lines}
    assert found == lines


#: Pages on which a comment before each block of commands says whether a test runs it, and if not, why.
MARKED = ["getting-started.md", "operations.md", "files.md", "architecture.md", "glossary.md", "adding-a-feed.md"]
VERBS = {"run", "run standalone", "run until", "run standalone until", "backup", "not run"}


def test_every_block_of_commands_is_marked_as_run_or_not_run() -> None:
    found = [block for name in MARKED for block in blocks(ROOT / "docs" / name)]
    assert len(found) > 20
    assert [str(block) for block in found if block.verb not in VERBS] == []
    unexplained = [block for block in found if block.verb not in {"run", "run standalone"} and not block.rest]
    assert [str(block) for block in unexplained] == []
    for name in MARKED:
        fences = re.findall(r"^```(?:sh|console)$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == len(blocks(ROOT / "docs" / name)), name


ALERTS = ["FeedSilent", "LagGrowing", "DeadLetters", "SpoolInUse", "SessionIncomplete", "DiskFilling", "ProcessDown"]


def test_each_alert_has_a_runbook_section() -> None:
    """The alert rules link to these headings."""
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### Alert: (\w+)$(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == ALERTS
    assert [
        name for name, text in sections.items() if not all(f"**{x}**" in text for x in ("Means", "Look", "Do"))
    ] == []


def test_the_architecture_names_every_table_view_and_package() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    created = r"CREATE (?:OR REPLACE )?(?:TABLE|(?:MATERIALIZED )?VIEW) (\w+)"
    migrations = [path for path in FILES if re.fullmatch(r"\d{4}_.+\.sql", path.name)]
    sql = "".join(path.read_text(encoding="utf-8") for path in migrations)
    renamed = dict(re.findall(r"ALTER (?:TABLE|VIEW) (\w+) RENAME TO (\w+)", sql))
    tables = {"tickpipe_migrations", *re.findall(created, sql), *renamed.values()} - renamed.keys()
    assert len(tables) > 10
    assert sorted(name for name in tables if f"`{name}`" not in page) == []
    packages = {
        str(path.parent.relative_to(ROOT))
        for name in ("common", "producer", "consumer", "tickpipe")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert len(packages) > 10
    assert sorted(name for name in packages if f"\n{name}/ " not in page) == []


def test_the_architecture_picture_is_self_contained_and_supports_dark_mode() -> None:
    text = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314  a file of this repository
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"@import|@font-face|href|src=|<image", text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    steps = {"".join(each.itertext()) for each in root.iter() if each.get("class") == "number"}
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert steps == set(re.findall(r"^\*\*(\d)\.", page, re.MULTILINE)), "one paragraph for each step"


def test_wrong_commands_are_detected() -> None:
    lines = {
        "make tea": "no make target ['tea']",
        "make test PYTHON=python3.12": None,
        "X=1 .venv/bin/tickpipe up --for 20 && .venv/bin/producer --no-such": "producer has no ['--no-such']",
        "tickpipe fly": "no command tickpipe fly",
        "docker compose up --scale consumer=3": None,
    }
    for line, expected in lines.items():
        assert [error for call in calls(line) if (error := call_error(call))] == ([expected] if expected else []), line


@pytest.mark.parametrize("host", REGISTRIES)
def test_no_file_names_a_package_registry(host: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in FILES if host.encode() in path.read_bytes()] == []


def test_tests_named_on_the_pages_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    sources = "".join(path.read_text(encoding="utf-8") for path in FILES if path.name.startswith("test_"))
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_word_of_a_selection_of_tests_selects_some() -> None:
    """`FILE -k "this or that"` on a page. Without a file it is for several, so all are searched."""
    selection = re.compile(r'`(?:(tests/\S+\.py) )?-k ("[^"`]+"|\w+)`')
    rows = [row for page in PAGES for row in selection.findall(page.read_text(encoding="utf-8"))]
    assert any(file for file, _ in rows)
    sources = {path: path.read_text(encoding="utf-8") for path in FILES if path.name.startswith("test_")}
    missing = [
        (file, word)
        for file, expression in rows
        for word in set(re.findall(r"\w+", expression)) - {"or"}
        if not re.search(rf"def test_\w*{word}", sources[ROOT / file] if file else "".join(sources.values()))
    ]
    assert missing == []


def test_machines_follow_from_the_measured_cost() -> None:
    """The table of docs/scaling.md: each figure is the rate divided by 60 % of what one can do, rounded up."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = [re.findall(r"\d[\d.,]*", line) for line in text.splitlines() if re.match(r"\| [\d,]+ \|", line)]
    numbers = [[float(cell.replace(",", "")) for cell in row] for row in rows]
    producer, redis, consumer = next(row[2:] for row in numbers if row[:2] == [16, 500])
    for rate, *machines in (row for row in numbers if row[0] >= 100_000):
        needed = [rate * cost / 0.6e6 for cost in (producer, redis, consumer)] + [rate / 60_000]
        assert machines == [math.ceil(each) for each in needed]
