"""The names of keys that belong to a stream. Pure."""

from __future__ import annotations

import re


def beside(key: str, name: str) -> str:
    """A key for `name` in the same slot of a Redis Cluster as the stream `key`, so that one script may use both.

    Redis hashes only the part of a key between the first `{` and the next `}`, if there is one:
    `prices` → `{prices}:name`, `prices:{0}` → `prices:{0}:name`.
    Source: the Redis Cluster specification, "Hash tags".
    """
    return f"{key}:{name}" if re.match(r"[^{]*\{[^}]+\}", key) else f"{{{key}}}:{name}"
