"""websocket-client alone, its callback empty: `URL [unchecked]`. No JSON is decoded. Runs until it is told to end.

As it comes, it checks each text's UTF-8 in Python, which is most of its time; `unchecked` leaves that out, as the
producer does, which decodes the JSON instead.
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
