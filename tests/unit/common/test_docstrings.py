"""`python -OO` strips docstrings, from which help texts and some messages are made."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.cli import consumer

ROOT = Path(__file__).parents[3]


def run(*argv: str) -> str:
    """What Python prints without docstrings, as one line without frames."""
    argv = (sys.executable, "-OO", *argv)
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.stdout).split())


@pytest.mark.parametrize(("command", "callback"), [("consumer", consumer)])
def test_help_has_its_text_without_docstrings(command: str, callback: Callable[..., None]) -> None:
    assert callback.__doc__
    assert " ".join(callback.__doc__.split("\n\n", maxsplit=1)[0].split()) in run("-m", command, "--help")


def test_each_command_of_tickpipe_has_its_help_without_docstrings() -> None:
    assert re.search(r"\bverify [A-Z][a-z]+", run("-m", "tickpipe", "--help"))


def test_an_error_has_its_default_message_without_docstrings() -> None:
    code = "from common.errors import *; print(StreamOutageError(), ConfigurationError('mine'), sep='; ')"
    assert run("-c", code) == "Redis is unavailable, or refuses commands for now.; mine"
