"""The callback by which long work reports its progress."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Takes the amount done, the total (0: unknown) and a new description ("": unchanged)."""

    def __call__(self, done: float, total: float = 0, description: str = "", /) -> None: ...
