"""websocket-client alone with an empty callback: `URL [unchecked]`. Runs until SIGTERM and decodes no JSON.

By default, the library checks the UTF-8 of each text in Python, which takes most of its time. `unchecked` skips the
check, as tickpipe's producer does.
"""

from __future__ import annotations

import json
import sys

import websocket


def main() -> None:
    """Subscribe and read."""
    app = websocket.WebSocketApp(
        sys.argv[1],
        on_open=lambda ws: ws.send(json.dumps({"action": "subscribe", "params": {"symbols": "BTC/USD,AAPL"}})),
        on_message=lambda _ws, _message: None,
    )
    app.run_forever(skip_utf8_validation=sys.argv[2:] == ["unchecked"])


if __name__ == "__main__":
    main()
