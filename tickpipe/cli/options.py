"""Options that several commands share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from common.duration import read_moment
from common.errors import ConfigurationError

Partitions = Annotated[
    str, typer.Option(help="Only these channels, such as 0-3,7.", show_default="all that producers have used")
]
Disk = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        help="A path on the database's disk.",
        show_default="detected if the database's socket is on this machine",
    ),
]


def read_span(since: str, until: str, now: datetime) -> tuple[datetime, datetime]:
    """The span of --since and --until, by default from 1970 until now. Raises ConfigurationError."""
    begin = read_moment(since, now, "--since") if since else datetime(1970, 1, 1, tzinfo=UTC)
    end = read_moment(until, now, "--until") if until else now
    if begin >= end:
        raise ConfigurationError(f"--since {since or begin} is not before --until {until or end}")
    return begin, end
