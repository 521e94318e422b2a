"""Reads small text files (secrets, symbols, `.env`), and finds invisible characters in them."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path

from common.errors import ConfigurationError

#: Largest size of a file, in bytes.
MAX_BYTES = 1 << 20
#: Blanks that an editor leaves at the ends of a line. No other character is removed.
BLANKS = " \t\r\n"

#: Characters that Python calls printable and no screen shows: fillers, joiners and variation selectors.
_FILLERS = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def read_text(path: Path, title: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one, as Windows writes it.

    Raises ConfigurationError, beginning with `title`, for any other file.
    """
    try:
        return _decode(_read(path))
    except OSError as error:
        reason = error.strerror or type(error).__name__  # str(error) has the path, which may be a secret
    except ValueError as error:
        reason = str(error)
    raise ConfigurationError(f"{title} cannot be read: {reason}")


def _read(path: Path) -> bytes:
    """Open without waiting: a FIFO without a writer would block for ever."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"it is a {'FIFO' if stat.S_ISFIFO(mode) else 'device'}, not a regular file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return content


def _decode(content: bytes) -> str:
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        name = "UTF-16" if wide else "UTF-8"
        raise ValueError(f"it is not {name} text at byte {error.start + 1}. Save it as UTF-8") from None
    if "\0" in text:
        raise ValueError("it holds NUL characters. Save it as UTF-8")
    return text


def shown(text: str) -> str:
    """The text for a message: escaped if it holds a character that no screen shows."""
    return text if text.isprintable() else ascii(text)


def unquoted(text: str) -> str:
    """The text without blanks around it and without one pair of quotes around it."""
    text = text.strip(BLANKS)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip(BLANKS)
    return text


def refuse_invisible(text: str, title: str) -> None:
    """Raise ConfigurationError, beginning with `title`, if the text has a character that no screen shows.

    The message has this one character, escaped. Blanks are allowed.
    """
    for position, character in enumerate(text, 1):
        if character not in BLANKS and (not character.isprintable() or _FILLERS.match(character)):
            raise ConfigurationError(
                f"{title} holds the invisible character {character!a} at position {position}: remove it"
            )
