"""Settings of a producer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from common.channels import Shard, channel_keys
from common.errors import ConfigurationError
from common.proxy import Proxy
from common.settings import Secret
from common.streams.stream import Confirmation
from producer.feeds import VENDORS
from producer.feeds.vendor import Vendor


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """Settings of the feed. All times are in seconds."""

    #: Name of the producers of this feed.
    name: str = "twelvedata"
    vendor: Vendor = VENDORS["twelvedata"]
    shard: Shard = field(default_factory=Shard)
    #: Address of the websocket; None: the vendor's.
    url: str | None = None
    proxy: Proxy | None = None
    resubscribe_after: float = 600.0
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
            parts = urlsplit(self.urls[0])
            valid = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and parts.port != 0
            self.host.encode("idna")
        except ValueError:  # unbalanced brackets, or a port that is not a number
            valid = False
        if not valid:
            raise ConfigurationError(f"--url {self.url!r} is not a websocket address. Example: {self.vendor.urls[0]}")

    @property
    def urls(self) -> Sequence[str]:
        """Addresses of the websocket, in the order in which they are tried."""
        return self.vendor.urls if self.url is None else (self.url,)

    @property
    def host(self) -> str:
        """The first server's name, for messages and logs. The whole address may include the key."""
        return host_of(self.urls[0])


def host_of(url: str) -> str:
    """The server's name in an address."""
    return str(urlsplit(url).hostname)


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
    #: Number of channels.
    partitions: int = 1
    spool_folder: Path
    #: Bytes.
    spool_max: int
    #: Prices.
    queue_max: int
    #: Seconds.
    append_timeout: float
    #: Seconds that the lease of a producer in reserve lives without a renewal; None: no lease.
    lease: float | None = None
    #: None: an append counts as soon as Redis has acknowledged it.
    confirmation: Confirmation | None = None
    #: Seconds.
    unhealthy_after: float
    #: Whether `tickpipe backfill` runs after a reconnect.
    repair: bool = False

    @property
    def keys(self) -> list[str]:
        """The streams of prices, one for each channel."""
        return channel_keys(self.price_stream, self.partitions)
