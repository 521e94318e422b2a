"""The Lua scripts of this package."""

from __future__ import annotations

from importlib.resources import files

import redis
from redis.commands.core import Script


def load_script(client: redis.Redis, name: str) -> Script:
    """The script in the file of this name. It is sent to the server at its first call."""
    return client.register_script((files("common.streams") / f"{name}.lua").read_text(encoding="utf-8"))
