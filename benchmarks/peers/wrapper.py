"""The vendor's wrapper with default settings and an empty callback: `URL`. Runs until SIGTERM."""

from __future__ import annotations

import sys
import time
from typing import Any

from twelvedata.context import Context
from twelvedata.websocket import TDWebSocket


def main() -> None:
    """Connect and send a heartbeat every 10 s, as the vendor's documentation asks."""
    context = Context()  # a TDClient would make a REST call
    context.apikey = "key"
    context.defaults = {"symbols": ["BTC/USD", "AAPL"], "on_event": on_event}
    client = TDWebSocket(context)
    client.url = sys.argv[1]
    client.connect()
    while True:
        time.sleep(10)
        client.heartbeat()


def on_event(_event: Any) -> None:
    """Do nothing."""


if __name__ == "__main__":
    main()
