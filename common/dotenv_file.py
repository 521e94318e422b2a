"""Loads the settings in a `.env` file."""

from __future__ import annotations

import os
import re
from io import StringIO
from pathlib import Path

from dotenv import load_dotenv
from dotenv.parser import Binding, parse_stream

from common.errors import ConfigurationError
from common.plain_text import read_text, refuse_invisible


def load_dotenv_file(path: Path) -> None:
    """Set the variables of the file that are not set yet. A missing file is ignored.

    Raises ConfigurationError, with file and line, if a line is not NAME=value. To skip the line would silently use a
    default, for example another server.
    """
    if not os.path.lexists(path):
        return
    text = read_text(path, str(path))
    for binding in parse_stream(StringIO(text)):
        _check(binding, path)
    try:
        load_dotenv(stream=StringIO(text), override=False)
    except ValueError:
        raise ConfigurationError(
            f"{path} holds characters that this locale cannot encode: set LC_ALL=C.UTF-8"
        ) from None


def _check(binding: Binding, path: Path) -> None:
    lines = binding.original.string
    blank_lines = len(re.findall(r"\r\n|\r|\n", lines[: len(lines) - len(lines.lstrip())]))
    title = f"{path}, line {binding.original.line + blank_lines}"
    if binding.error or (binding.key and binding.value is None):
        raise ConfigurationError(f"{title} is not NAME=value. Close each quote, and begin a comment with #")
    if binding.key and not re.fullmatch(r"[A-Za-z0-9_.-]+", binding.key):
        raise ConfigurationError(f"{title}: a name has ASCII letters, digits and _ only")
    refuse_invisible(binding.value or "", f"{title}: the value")
