"""Twelve Data: prices of stocks, forex and crypto, with a key. Pure.

Price events have three shapes (stock, crypto, forex) with the fields `event symbol type timestamp price` in common.
Sources: the vendor's documentation of the websocket, and the transcripts in the TimescaleDB tutorial
"Ingest real-time financial websocket data".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from twelvedata.websocket import TDWebSocket

from producer.feeds.vendor import Event, SubscribeStatus, Vendor, plain

#: Fields of a price event that describe the instrument.
_INSTRUMENT_FIELDS = ("symbol", "type", "exchange", "mic_code", "currency", "currency_base", "currency_quote")


class TwelveData(Vendor):
    """The vendor's wrapper makes the messages.

    Only its static methods are used: an instance of TDWebSocket starts a thread that never ends.
    """

    name, title = "twelvedata", "Twelve Data"
    urls = ("wss://ws.twelvedata.com/v1/quotes/price",)
    #: Two instruments of each kind of market. The trial key gives access to all of them.
    trial_symbols = "BTC/USD,ETH/USD,EUR/USD,USD/JPY,XAU/USD,AAPL,MSFT,NVDA"
    needs_key = True
    has_trades = False
    heartbeat = '{"action": "heartbeat"}'  # the vendor recommends one about every 10 s

    def address(self, url: str, key: str) -> str:
        """See Vendor."""
        return f"{url}?apikey={quote(key, safe='')}"

    def subscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return json.dumps(TDWebSocket.subscribe_event(names))

    def unsubscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return json.dumps(TDWebSocket.unsubscribe_event(names))

    def prices(self, message: Event, symbols: Mapping[str, str]) -> Sequence[Event]:  # noqa: ARG002
        """See Vendor."""
        return (message,) if message.get("event") == "price" else ()

    def answer(self, message: Event, symbols: Mapping[str, str]) -> SubscribeStatus | None:  # noqa: ARG002
        """See Vendor. The lists may be absent, null or of any other type."""
        if message.get("event") != "subscribe-status":
            return None
        accepted = tuple(_symbols(message.get("success")))
        refused = {
            symbol: plain(item.get("message")) or "refused" for symbol, item in _symbols(message.get("fails")).items()
        }
        error = plain(message.get("message") or message.get("messages")) or "refused"
        return SubscribeStatus(accepted, refused, error if message.get("status") == "error" else "")

    def is_error(self, message: Event) -> bool:
        """See Vendor."""
        return message.get("status") == "error"

    def instrument(self, event: Event) -> dict[str, str]:
        """See Vendor."""
        return {name: plain(event[name]) for name in _INSTRUMENT_FIELDS if event.get(name)}


def _symbols(items: object) -> dict[str, Event]:
    """Symbol → item, for a list of symbols or of objects with a `symbol`."""
    found: dict[str, Event] = {}
    for item in items if isinstance(items, list) else []:
        if isinstance(item, str):
            found[item] = {}
        elif isinstance(item, dict) and isinstance(item.get("symbol"), str):
            found[item["symbol"]] = item
    return found
