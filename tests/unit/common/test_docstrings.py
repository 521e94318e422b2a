"""`python -OO` strips docstrings, from which help texts and some messages are made."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*argv: str, optimize: str = "-OO") -> str:
    ended = subprocess.run(
        [sys.executable, optimize, *argv], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.stdout).split())


@pytest.mark.parametrize("command", ["producer", "consumer", "tickpipe"])
def test_help_is_the_same_without_docstrings(command: str) -> None:
    assert run("-m", command, "--help") == run("-m", command, "--help", optimize="-O")


def test_an_error_has_its_default_message_without_docstrings() -> None:
    code = "from common.errors import *; print(StreamOutageError(), ConfigurationError('mine'), sep='; ')"
    assert run("-c", code) == "Redis is unavailable, or refuses commands for now.; mine"
