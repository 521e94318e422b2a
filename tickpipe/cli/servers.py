"""`tickpipe servers`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from common import cli, log, process
from common.terminal import echo
from tickpipe.extras import required_extra

Folder = Annotated[Path, typer.Argument(help="The demo/ or live/ folder of `tickpipe up`, or a new folder.")]


def servers(folder: Folder) -> None:
    """Run only the embedded Redis and PostgreSQL, to query, dump or restore data. Prints their URLs; Ctrl-C stops them.

    Needs the extra `local`.
    """
    with required_extra("local", "tickpipe servers"):
        from tickpipe.local.servers.embedded import embedded_servers
        from tickpipe.local.servers.stopping import StartStoppedError
    log.configure("ERROR")
    cli.remove_libpq_variables()
    stop = process.stop_on_signals()
    with suppress(StartStoppedError), embedded_servers(folder, stop=stop) as running:
        echo(f"export REDIS_URL='{running.redis_url}'", f"export DATABASE_URL='{running.database_url}'")
        while not stop.wait(0.5):
            running.keep_running(stop)
