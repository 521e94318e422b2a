"""Settings of the simulator and the summary of a run."""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from common.errors import ConfigurationError
from common.formatting import counted

#: HTTP statuses that can refuse a handshake.
REFUSALS = frozenset(status for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Settings that all feeds share. Raises ConfigurationError for a value out of range.

    `rate` is in price events per second. `speed` is the speed of a replay: 2 is twice as fast as recorded, 0 as fast as
    clients read.
    """

    host: str = "127.0.0.1"
    port: int = 0  # any free port
    rate: float = 10.0
    speed: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigurationError(f"--port {self.port}: expected 0 (any free port) to 65535")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigurationError(f"--rate {self.rate}: expected price events per second, above 0")
        if not (math.isfinite(self.speed) and self.speed >= 0):
            raise ConfigurationError(f"--speed {self.speed}: expected 0 (as fast as possible) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatorConfig(ServerConfig):
    """Settings of the simulator of Twelve Data. `rate` is that of each connection.

    `api_key` None accepts any key that is not empty. `credits_per_minute` limits the REST calls answered per minute of
    the clock; None disables the limit.
    """

    capture: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    credits_per_minute: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeConfig(ServerConfig):
    """Settings of the simulator of an exchange. `rate` is that of each symbol, with or without a client.

    `drop`, `repeat` and `delay` are shares of the trades, 0 to 1; REST has them all. Connections are closed after
    `close_after` seconds, and `shutdown_notice` seconds before, Binance announces it. `refuse` is the HTTP status that
    refuses each handshake.
    """

    feed: str
    replay: Path | None = None
    drop: float = 0.0
    repeat: float = 0.0
    delay: float = 0.0
    close_after: float | None = None
    shutdown_notice: float | None = None
    refuse: int | None = None
    requests_per_second: int | None = None

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)  # super() does not work in a class with slots
        shares = {"--drop": self.drop, "--repeat": self.repeat, "--delay": self.delay}
        for option, share in shares.items():
            if not 0 <= share <= 1:
                raise ConfigurationError(f"{option} {share}: expected a share of all trades, 0 to 1")
        if sum(shares.values()) > 1:
            raise ConfigurationError("--drop, --repeat and --delay are shares of all trades: together 1 at most")
        if self.refuse is not None and self.refuse not in REFUSALS:
            raise ConfigurationError(f"--refuse {self.refuse}: expected an HTTP status of an error, such as 451")
        if self.shutdown_notice is not None and (self.feed != "binance" or self.close_after is None):
            raise ConfigurationError("--shutdown-notice needs --feed binance and --close-after")


def listen_error(config: ServerConfig, error: Exception) -> ConfigurationError:
    """The error for an address that the simulator cannot listen on."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        message = f"port {config.port} on {config.host} is taken; choose another with --port (0: any free port)"
    else:
        message = f"cannot listen on {config.host}, port {config.port}; choose others with --host, --port ({error})"
    return ConfigurationError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Figures of a simulator from start to stop."""

    connections: int
    events_sent: int
    seconds: float

    def __str__(self) -> str:
        rate = self.events_sent / self.seconds if self.seconds else 0.0
        return (
            f"{self.events_sent:,} price events sent to {counted(self.connections, 'connection')} "
            f"in {self.seconds:.1f} s ({rate:,.0f}/s)"
        )
