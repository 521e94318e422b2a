"""Chooses the source and the destination of the prices of `tickpipe up`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import settings
from common.errors import ConfigurationError
from common.settings import Secret
from producer.feeds.vendor import Vendor
from tickpipe.local.addresses import default_data_dir


@dataclass(frozen=True)
class RunMode:
    """Source and destination of the prices. Simulated and real prices never share a data folder."""

    simulated: bool
    data_dir: Path
    redis_url: Secret | None  # None: embedded Valkey
    database_url: Secret | None  # None: embedded PostgreSQL


def choose_run_mode(environ: Mapping[str, str], vendor: Vendor, *, simulate: bool, data_dir: Path | None) -> RunMode:
    """Choose simulated or real prices, and embedded or existing servers. Writes nothing.

    Raises ConfigurationError, also if simulated prices would go to existing servers unless `simulate` is set.
    """
    if simulate and not vendor.needs_key:
        raise ConfigurationError(f"--simulate simulates Twelve Data only: leave out --feed {vendor.name}")
    no_key = vendor.needs_key and settings.read_api_key(environ) is None
    redis_url = settings.read_redis_url(environ)
    database_url = settings.read_database_url(environ)
    if no_key and not simulate and (redis_url or database_url):
        given = " and ".join(name for name, url in (("REDIS_URL", redis_url), ("DATABASE_URL", database_url)) if url)
        raise ConfigurationError(
            f"{given} is set, and there is no API key: simulated prices would be stored among your own. "
            "Set TWELVE_DATA_API_KEY or use --feed coinbase for real prices, or use --simulate"
        )
    simulated = simulate or no_key
    kind: Literal["demo", "live"] = "demo" if simulated else "live"
    return RunMode(simulated, data_dir / kind if data_dir else default_data_dir(kind), redis_url, database_url)
