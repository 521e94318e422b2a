"""Logging, set up once, by the command lines alone."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import unquote

from common.errors import ConfigurationError
from common.settings import Secret
from common.terminal import printable, printable_lines

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def configure(level: str, secrets: Iterable[Secret] = ()) -> None:
    """Log to stderr, one line a record, in UTC; the secrets never show, whoever logs them.

    Raises ConfigurationError for a level that is none.
    """
    if level.upper() not in _LEVELS:
        raise ConfigurationError(f"LOG_LEVEL {level!r} is none of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("websocket").setLevel(logging.CRITICAL)  # what it says, the feed says better


class _Formatter(logging.Formatter):
    def __init__(self, secrets: Iterable[Secret]) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        texts = [secret.reveal() for secret in secrets]
        passwords = [part for text in texts for part in re.findall(r"://[^/@]*:([^@]+)@", text)]
        self._secrets = [*texts, *passwords, *map(unquote, passwords)]

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{record.msecs:03.0f}Z"

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for secret in self._secrets:
            line = line.replace(secret, "…")
        # After the secrets: they are known as they are. A traceback has lines of its own.
        return printable_lines(line) if record.exc_text or record.stack_info else printable(line)
