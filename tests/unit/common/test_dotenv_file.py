"""A `.env` file is read completely or refused with the line number. No line is skipped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import typer

from common import cli
from common.errors import ConfigurationError
from tests.unit.common.test_plain_text import INVISIBLE, SAVED_AS, UNREADABLE

SECRET = "s3cr3t"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | str], dict[str, str]]:
    """Runs an empty command in a folder with this `.env` and returns its variables."""
    monkeypatch.chdir(tmp_path)

    def run(content: bytes | str) -> dict[str, str]:
        Path(".env").write_bytes(content.encode() if isinstance(content, str) else content)
        found: dict[str, str] = {}

        app = typer.Typer(add_completion=False)

        @app.command()
        def command() -> None:
            found.update(os.environ)

        monkeypatch.setattr("sys.argv", ["name"])
        with mock.patch.dict(os.environ, {}, clear=True), pytest.raises(SystemExit) as ended:
            cli.run(app, "name")
        if ended.value.code == 2:
            raise ConfigurationError
        assert ended.value.code == 0
        return found

    return run


Load = Callable[[bytes | str], dict[str, str]]


@pytest.mark.parametrize("saved", SAVED_AS.values(), ids=SAVED_AS)
def test_dotenv_saved_by_any_editor_is_read(load: Load, saved: Callable[[str], bytes]) -> None:
    text = "A=1\r\n# ü\r\n\r\nexport B='2 3' # two\r\nC=\"x\ny\"\r\n D = 4\nE=\n'F'=a#b\r\n"
    assert load(saved(text)) == {"A": "1", "B": "2 3", "C": "x\ny", "D": "4", "E": "", "F": "a#b"}


@pytest.mark.parametrize(
    "line",
    [
        f"KEY: {SECRET}",
        f"KEY {SECRET}",
        "KEY",
        "export KEY",
        f"set KEY={SECRET}",
        f'KEY="{SECRET}',
        f"KEY='{SECRET}",
        f"KEY='{SECRET}'x",
        f'"KEY"={SECRET}',
        f"={SECRET}",
        f"\u200bKEY={SECRET}",
        f"\ufeffKEY={SECRET}",
        f"KÉY={SECRET}",
        f"“KEY”={SECRET}",
        f"KEY='{SECRET}\u200b'",
        f"KEY={SECRET}\u200b{SECRET}",
        f"KEY={SECRET}\x1b[2J",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("before", ["", "\n", "A=1\r\n\r\n# comment\n\n", 'B="x\ny"\n'])
def test_malformed_dotenv_line_is_reported(
    load: Load, capsys: pytest.CaptureFixture[str], line: str, before: str
) -> None:
    if line.startswith("\ufeff") and not before:
        pytest.skip("a byte order mark")
    with pytest.raises(ConfigurationError):
        load(f"{before}{line}\n\nC=3\n")
    (said,) = capsys.readouterr().err.splitlines()
    number = 1 + len(re.findall("\n", before))
    assert re.search(rf"^name: \.env, line {number}\b", said)
    assert said.isprintable()
    assert SECRET[:3] not in said


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
def test_an_invisible_character_in_a_value_is_shown_escaped(
    load: Load, capsys: pytest.CaptureFixture[str], character: str
) -> None:
    with pytest.raises(ConfigurationError):
        load(f"A=1\nPRICE_STREAM=pri{character}ces\n")
    said = capsys.readouterr().err
    assert ".env, line 2: the value holds the invisible character" in said
    assert ascii(character) in said


@pytest.mark.parametrize(
    ("make", "reason"), [UNREADABLE[name] for name in UNREADABLE if name != "missing"], ids=list(UNREADABLE)[1:]
)
def test_binary_dotenv_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / ".env")
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda **_: None, "name")  # type: ignore[arg-type]
    assert ended.value.code == 2
    assert re.search(rf"^name: \.env cannot be read: .*{reason}", capsys.readouterr().err)


def test_empty_or_missing_dotenv_is_accepted(load: Load) -> None:
    assert load("") == load("\ufeff \r\n") == {}
