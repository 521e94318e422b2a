"""Settings of a feed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from common.errors import ConfigurationError
from common.proxy import Proxy

logger = logging.getLogger("producer.feed")

DEFAULT_URL = "wss://ws.twelvedata.com/v1/quotes/price"


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """How the feed behaves; all times in seconds."""

    name: str = "twelvedata"
    url: str = DEFAULT_URL
    proxy: Proxy | None = None
    resubscribe_after: float = 600.0
    #: The vendor asks for one about every 10 s.
    heartbeat_every: float = 10.0
    #: A heartbeat unanswered for so long, and no other event either: the feed is dead though the socket lives.
    heartbeat_timeout: float = 7.0
    #: After so long without any frame a ping is sent; after twice that the peer is taken for gone.
    ping_after: float = 3.5
    handshake_timeout: float = 4.0
    alive_every: float = 5.0
    #: Tries with a key that has never been accepted.
    key_tries: int = 4

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and parts.port != 0
            self.host.encode("idna")
        except ValueError:  # brackets that do not close, a port that is none
            sound = False
        if not sound:
            raise ConfigurationError(f"--url {self.url!r} is no websocket address: it looks like {DEFAULT_URL}")

    @property
    def host(self) -> str:
        """The server's name, for words and logs: the whole URL holds the key."""
        return str(urlsplit(self.url).hostname)
