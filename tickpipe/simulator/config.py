"""Settings of the simulator and the summary of a run."""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigurationError
from common.formatting import counted


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
