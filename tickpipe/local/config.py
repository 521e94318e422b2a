"""Settings of `tickpipe up`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UpConfig:
    """`seconds` to run after the first price, None until Ctrl-C. `rate` in simulated price events per second."""

    feed: str = "twelvedata"
    symbols: Sequence[str]
    consumers: int
    seconds: float | None
    rate: float
    price_stream: str
    consumer_group: str
    dashboard: bool
