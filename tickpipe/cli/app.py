"""The Typer application and its console entry point."""

from __future__ import annotations

import typer

from common import cli
from tickpipe.cli import dead_letters
from tickpipe.cli.backfill import backfill
from tickpipe.cli.create_streams import create_streams
from tickpipe.cli.dashboard import dashboard
from tickpipe.cli.doctor import doctor
from tickpipe.cli.export import export
from tickpipe.cli.import_ticks import import_ticks
from tickpipe.cli.migrate import migrate
from tickpipe.cli.replay import replay
from tickpipe.cli.retention import retention
from tickpipe.cli.servers import servers
from tickpipe.cli.simulate import simulate
from tickpipe.cli.status import status
from tickpipe.cli.tail import tail
from tickpipe.cli.up import up
from tickpipe.cli.verify import verify

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def tickpipe() -> None:
    """A tick database that you own: live prices from a websocket, through Redis, into TimescaleDB.

    These variables can hold a secret and have no option: TWELVE_DATA_API_KEY, REDIS_URL and DATABASE_URL. Set the
    variable itself, or set …_FILE to the path of a file that holds the value. tickpipe reads `.env` in the working
    folder.

    Exit status: 0 success, 1 a failure that may succeed when repeated, 2 wrong usage or configuration.
    """


app.command()(up)
app.command()(servers)
app.command()(simulate)
app.command()(status)
app.command()(tail)
app.command()(dashboard)
app.command()(verify)
app.command()(replay)
app.add_typer(dead_letters.app, name="dead-letters")
app.command()(doctor)
app.command()(migrate)
app.command("create-streams")(create_streams)
app.command()(export)
app.command("import")(import_ticks)
app.command()(retention)
app.command()(backfill)


def main() -> None:
    """Run the command line. Does not return."""
    cli.run(app, "tickpipe")
