"""websocket-client alone, its callback empty: `URL`. No JSON is decoded. Runs until it is told to end."""

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
    app.run_forever()


if __name__ == "__main__":
    main()
