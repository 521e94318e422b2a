"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
