"""`tickpipe dead-letters`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from common import settings
from common.formatting import counted
from common.terminal import echo
from tickpipe.cli.connections import open_connections
from tickpipe.maintenance import dead_letters
from tickpipe.terminal.progress import progress

app = typer.Typer(no_args_is_help=True, help="List the entries that could not be stored, or put them back.")

LetterId = Annotated[int | None, typer.Option("--id", help="Only this dead letter.")]
Session = Annotated[int | None, typer.Option("--session", help="Only dead letters of this session.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only dead letters whose reason contains this text.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number to list, oldest first.")]


@app.command("list")
def list_letters(letter: LetterId = None, session: Session = None, reason: Reason = None, limit: Limit = 100) -> None:
    """List dead letters, oldest first: id, time, stream and entry id, reason, and the entry itself."""
    store, _ = open_connections("", settings.PRICE_STREAM)
    with closing(store):
        found = dead_letters.find(store, dead_letters.Filter(id=letter, session=session, reason=reason), limit=limit)
    for one in found:
        echo(f"{one.id}  {one.at:%Y-%m-%d %H:%M:%S}  {one.stream} {one.entry_id}  {one.reason}", f"    {one.text}")
    echo(counted(len(found), "dead letter") + (" or more" if len(found) == limit else ""))


@app.command("retry")
def retry_letters(letter: LetterId = None, session: Session = None, reason: Reason = None) -> None:
    """Put dead letters back into their streams: all, or those that match. Bad entries become dead letters again."""
    store, channels = open_connections("", settings.PRICE_STREAM)
    wanted = dead_letters.Filter(id=letter, session=session, reason=reason)
    with closing(store), progress("putting dead letters back") as report:
        done, total = 0, dead_letters.count(store, wanted)
        for count in dead_letters.retry(store, channels.stream, wanted):
            done += count
            report(done, total)
    echo(f"{counted(done, 'dead letter')} put back")
