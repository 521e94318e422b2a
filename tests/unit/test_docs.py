"""What the pages say is there: links, named files, make targets, commands with their options and variables."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
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

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"TWELVE_DATA_API_KEY", "REDIS_URL", "DATABASE_URL"}
#: Put together here, so that this file does not name them.
REGISTRIES = ["pypi" + ".org", "files.python" + "hosted.org", "registry." + "npmjs.org"]

#: Of the data of `tickpipe up`.
FOLDERS = {"live/", "demo/", "postgres-18/", "valkey/", "spool/", "logs/"}

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


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them; the second of two that are the same gets -1."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return {name if not (before := found[:n].count(name)) else f"{name}-{before}" for n, name in enumerate(found)}


def broken_links(page: Path) -> list[str]:
    """The links of a page to files and headings that are not there."""
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
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# Redis's `memory`: a look\n## Twice\n## Twice\n```sh\n# Comment\n```\n")
    links = ["other.md", "other.md#rediss-memory-a-look", "other.md#twice-1", "#here", "https://example.com/#x"]
    wrong_ones = ["others.md", "other.md#comment", "other.md#twice-2", "#there"]
    page.write_text("# Here\n" + "".join(f"[x]({link})\n" for link in links + wrong_ones))
    assert broken_links(page) == wrong_ones


@pages
def test_named_files_exist(page: Path) -> None:
    names = [
        span for span in spans(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.(py|sql|md|toml|lock|svg|ya?ml))", span)
    ]
    known = {path.name for path in FILES} | FOLDERS
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


def test_every_variable_is_shown_with_its_option() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(--[a-z-]+)`)? ?\|", page, re.MULTILINE)
    assert {name for name, option in rows if not option} == SECRETS
    variables = {
        (str(param.envvar), param.opts[0]) for command in COMMANDS.values() for param in command.params if param.envvar
    }
    assert {(name, option) for name, option in rows if option} == variables


def test_the_defaults_are_shown() -> None:
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


#: Variables of others that the pages name; all others are of a command, of a secret, or set on the page itself.
OTHERS = {"PATH", "PYTHON", "CI", "MINUTES", "SEED", "OPTIONS", "LIVE", "REDIS_DATA", "BACKUP", "POSTGRES_PASSWORD"}
OTHERS |= {"GRAFANA_PASSWORD", "DISK_ALERT_GB", "DASHBOARD_SHOT", "DASHBOARD_SHOTS", "TIMESCALEDB_URL"}  # of the tests
OTHERS |= {"SSL_CERT_FILE", "COMPOSE_FILE", "COMPOSE_PROFILES", "PGPASSWORD"}  # OpenSSL's, Compose's, libpq's
OTHERS |= {"UPGRADE", "IMAGE_REGISTRY"}  # of make, of the release workflow


def unknown_variables(text: str) -> set[str]:
    """Variables that a page sets, reads or names, and nobody knows."""
    named = set(re.findall(r"\$\{?([A-Z][A-Z_]+)\b|\b([A-Z][A-Z_]{2,})=|`([A-Z]+_[A-Z_]+)`", text))
    names = {name for found in named for name in found if name}
    ours = {str(param.envvar) for command in COMMANDS.values() for param in command.params if param.envvar}
    return names - ours - SECRETS - {f"{name}_FILE" for name in SECRETS} - OTHERS


@pages
def test_variables_are_of_some_command(page: Path) -> None:
    assert unknown_variables(page.read_text(encoding="utf-8")) == set()


def test_unknown_variables_are_found() -> None:
    assert unknown_variables("`SPOOL_DIR` $SPOOL_DIRS X_Y=1 `CLAIM_IDEL`") == {"SPOOL_DIRS", "X_Y", "CLAIM_IDEL"}


#: What each subcommand of docker compose that we use takes: its options, and whether only its first word is a service.
DOCKER = {
    "up": ({"--build", "--detach", "--scale"}, False),
    "down": ({"--volumes"}, False),
    "start": (set(), False),
    "stop": (set(), False),
    "logs": ({"--follow"}, False),
    "exec": (set(), True),
}


def wrong_docker(call: list[str], services: dict[str, Any]) -> str | None:
    """What is wrong with a call of docker compose; None for all others."""
    if call[:1] != ["docker"]:
        return None
    if call[2:3] == ["--profile"]:
        call = call[:2] + call[4:]
    if call[1:2] != ["compose"] or call[2:3] == [] or call[2] not in DOCKER:
        return f"not one of ours: {call}"
    (known, is_command), words = DOCKER[call[2]], call[3:]
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option not in known:
            return f"docker compose {call[2]} has no {option} here"
        if option == "--scale":
            words[0] = words[0].partition("=")[0]
            if words[0] not in services or "container_name" in services[words[0]]:
                return f"{words[0]} cannot be scaled"
            words.pop(0)
    named = words[:1] if is_command else words
    unknown = [word for word in named if word not in services]
    return f"no service {unknown}" if unknown or (is_command and not words) else wrong(words[1:] or [""])


def compose_services() -> dict[str, Any]:
    services: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
    return services


@pages
def test_containers_are_called_by_their_names(page: Path) -> None:
    services = compose_services()
    faults = [f"{line}: {fault}" for line in code(page) for c in calls(line) if (fault := wrong_docker(c, services))]
    assert faults == []


def test_wrong_calls_of_containers_are_found() -> None:
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
    found = {line: not any(wrong_docker(call, services) for call in calls(line)) for line in lines}
    assert found == lines


#: Pages whose every block of commands says whether a test runs it, and if not, why.
MARKED = ["getting-started.md", "operations.md", "architecture.md", "glossary.md", "adding-a-feed.md"]
VERBS = {"run", "run home", "run until", "run home until", "backup", "not run"}


def test_every_block_of_commands_says_what_becomes_of_it() -> None:
    found = [block for name in MARKED for block in blocks(ROOT / "docs" / name)]
    assert len(found) > 20
    assert [str(block) for block in found if block.verb not in VERBS] == []
    silent = [block for block in found if block.verb not in {"run", "run home"} and not block.rest]
    assert [str(block) for block in silent] == []
    for name in MARKED:
        fences = re.findall(r"^```(?:sh|console)$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == len(blocks(ROOT / "docs" / name)), name


ALERTS = ["FeedSilent", "LagGrowing", "DeadLetters", "SpoolInUse", "SessionIncomplete", "DiskFilling", "ProcessDown"]


def test_each_alert_says_what_to_do() -> None:
    """The alert rules link to these headings."""
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### Alert: (\w+)$(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == ALERTS
    assert [
        name for name, text in sections.items() if not all(f"**{x}**" in text for x in ("Means", "Look", "Do"))
    ] == []


def test_the_architecture_names_every_table_view_and_file() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    made = r"CREATE (?:OR REPLACE )?(?:TABLE|(?:MATERIALIZED )?VIEW) (\w+)"
    sql = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "sql").glob("*.sql"))
    tables = {"tickpipe_migrations", *re.findall(made, sql)}
    assert len(tables) > 10
    assert sorted(name for name in tables if f"`{name}`" not in page) == []
    files = {str(path.relative_to(ROOT)) for name in ("common", "producer", "consumer", "tickpipe")
             for path in (ROOT / name).glob("*.py") if path.name != "__init__.py"}  # fmt: skip
    assert sorted(name for name in files if f"`{name}`" not in page) == []


def test_the_picture_of_the_architecture_is_readable_everywhere() -> None:
    text = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314  our own file
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"@import|@font-face|href|src=|<image", text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    steps = {"".join(each.itertext()) for each in root.iter() if each.get("class") == "number"}
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert steps == set(re.findall(r"^\*\*(\d)\.", page, re.MULTILINE)), "a paragraph a step"


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
