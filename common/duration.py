"""Spans of time as users write them. Pure."""

from __future__ import annotations

import re

from common.errors import ConfigurationError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_duration(text: str, option: str) -> int:
    """Seconds of a span such as 90s, 10m, 1h or 7d; a number alone is seconds. Raises ConfigurationError."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text.strip())
    if not found:
        raise ConfigurationError(f"{option} {text!r} is not a span of time. Examples: 10m, 1h, 0")
    return int(found[1]) * _SECONDS[found[2]]
