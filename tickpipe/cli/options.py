"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Disk = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        help="A path on the database's disk.",
        show_default="detected if the database's socket is on this machine",
    ),
]
