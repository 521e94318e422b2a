"""Settings of a producer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import ConfigurationError
from common.proxy import Proxy
from common.settings import Secret

DEFAULT_URL = "wss://ws.twelvedata.com/v1/quotes/price"


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """Settings of the feed. All times are in seconds."""

    name: str = "twelvedata"
    url: str = DEFAULT_URL
    proxy: Proxy | None = None
    resubscribe_after: float = 600.0
    #: The vendor recommends a heartbeat about every 10 s.
    heartbeat_every: float = 10.0
    #: A heartbeat without an answer, or any other event, for this long means a dead feed on a live socket.
    heartbeat_timeout: float = 7.0
    #: Silence before a ping is sent. After twice this time the server counts as gone.
    ping_after: float = 3.5
    handshake_timeout: float = 4.0
    alive_every: float = 5.0
    #: Attempts with a key that has never been accepted.
    key_tries: int = 4

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and parts.port != 0
            self.host.encode("idna")
        except ValueError:  # unbalanced brackets, or a port that is not a number
            valid = False
        if not valid:
            raise ConfigurationError(f"--url {self.url!r} is not a websocket address. Example: {DEFAULT_URL}")

    @property
    def host(self) -> str:
        """The server's name, for messages and logs. The whole URL would include the key."""
        return str(urlsplit(self.url).hostname)


@dataclass(frozen=True, kw_only=True)
class ProducerConfig:
    """Settings of the whole producer."""

    feed: FeedConfig
    #: Called for each connection, so that the key can be rotated.
    api_key: Callable[[], Secret]
    #: Called again on SIGHUP if `reread_symbols` is set.
    symbols: Callable[[], list[str]]
    reread_symbols: bool
    redis_url: Secret
    price_stream: str
    spool_folder: Path
    #: Bytes.
    spool_max: int
    #: Prices.
    queue_max: int
    #: Seconds.
    append_timeout: float
    #: Seconds.
    unhealthy_after: float
