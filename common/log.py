"""Configures logging. Only the command lines call it."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import unquote, unquote_plus

from common.errors import ConfigurationError
from common.settings import Secret
from common.terminal import printable, printable_lines

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

#: A shorter secret could be part of any word. It is hidden only in URLs and after `password=` or `apikey=`.
SHORT = 6

#: A password in a URL, and a value after the name of a secret. Both are always hidden.
_IN_URL = re.compile(r"(://[^\s/@:]*:)\S*(?=@)")
_NAMED = re.compile(
    r"""((?:api_?key|password)(?:\s*=\s*|["']\s*:\s*))('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s&,;()'"]+)""",
    re.IGNORECASE,
)


def configure(level: str, secrets: Iterable[Secret] = ()) -> None:
    """Log to stderr in UTC, one line for each record, without these secrets. Warn if a secret is too short to hide.

    Raises ConfigurationError for an unknown level.
    """
    if level.upper() not in _LEVELS:
        raise ConfigurationError(f"LOG_LEVEL {level!r} is unknown: use one of {', '.join(_LEVELS)}")
    formatter = _Formatter(secrets)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("websocket").setLevel(logging.CRITICAL)  # the feed logs the same events with more detail
    for title in formatter.short:
        logging.getLogger("common.log").warning(
            "short secret: %s has fewer than %d characters. The log hides it only in URLs and after 'password=' or "
            "'apikey='. Choose a longer one",
            title,
            SHORT,
        )


class _Formatter(logging.Formatter):
    """Hides secrets in the message and in a traceback; time, level and logger cannot hold one."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        super().__init__("%(message)s")
        found: set[str] = set()
        #: A description of each short secret.
        self.short: list[str] = []
        for secret in secrets:
            texts = _texts(secret.reveal())
            found |= texts
            if any(len(text) < SHORT for text in texts):
                scheme = re.match(r"[\w+]+://", secret.reveal())
                self.short.append(f"the password in the {scheme[0]} URL" if scheme else "a key or password")
        everywhere = sorted((text for text in found if len(text) >= SHORT), key=len, reverse=True)
        self._hidden = [re.compile(_any_form(text)) for text in everywhere]
        self._hidden += [re.compile(f"(?<=:){_any_form(text)}(?=@)") for text in found if len(text) < SHORT]

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{record.msecs:03.0f}Z"

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for pattern in self._hidden:
            text = pattern.sub("…", text)
        text = _NAMED.sub(r"\1…", _IN_URL.sub(r"\1…", text))
        # After the secrets are hidden, since escaping could change them. A traceback keeps its lines.
        text = printable_lines(text) if record.exc_text or record.stack_info else printable(text)
        return f"{self.formatTime(record)} {record.levelname:<7} {record.name}: {text}"


def _texts(secret: str) -> set[str]:
    """The secret and the passwords in it, encoded and decoded."""
    passwords = re.findall(r"://[^/@:]*:([^/]*)@", secret)
    for value in re.findall(r"(?:^|[?&\s])(?:ssl|sentinel_)?password\s*=\s*('(?:\\.|[^'\\])*'|[^&\s]*)", secret):
        passwords += [value, re.sub(r"\\(.)", r"\1", value.strip("'"))]
    return {secret, *passwords, *map(unquote, passwords), *map(unquote_plus, passwords)} - {"", "''"}


def _any_form(secret: str) -> str:
    """A pattern for the secret in a text: each character plain, percent-encoded or escaped."""
    return "".join(map(_character, secret))


def _character(character: str) -> str:
    data = character.encode(errors="surrogatepass")
    forms = {character, repr(character)[1:-1], ascii(character)[1:-1], repr(data)[2:-1], json.dumps(character)[1:-1]}
    if character in "\\'\"":
        forms.add("\\" + character)
    encoded = [re.escape(form) for form in forms] + ["(?i:" + "".join(f"%{byte:02x}" for byte in data) + ")"]
    if character == " ":
        encoded.append(r"\+")
    return f"(?:{'|'.join(sorted(encoded, key=len, reverse=True))})"
