"""A tick database that you own: the operator's commands, and `connect()` to read prices in Python.

    >>> import tickpipe
    >>> db = tickpipe.connect()
    >>> db.candles("BTC/USD", "5m", since="1d").pandas()

Nothing is imported before it is used: each command starts by importing this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.errors import ConfigurationError, OutageError, TickpipeError
    from tickpipe.client import connect
    from tickpipe.client.tick import Tick

__all__ = ["ConfigurationError", "OutageError", "Tick", "TickpipeError", "connect"]

_MODULES = {
    "ConfigurationError": "common.errors",
    "OutageError": "common.errors",
    "Tick": "tickpipe.client.tick",
    "TickpipeError": "common.errors",
    "connect": "tickpipe.client",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tickpipe' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
