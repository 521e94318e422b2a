"""`tickpipe backfill`."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from common import cli, log, process, settings
from common.database.client import DatabaseClient
from common.errors import TickpipeError
from common.symbols import read_symbols
from common.terminal import echo
from tickpipe.backfill import DEFAULT_URL, plan
from tickpipe.cli.extras import required_extra
from tickpipe.terminal.progress import progress

Since = Annotated[
    str,
    typer.Option(help="Start: an ISO date or datetime (UTC unless it has an offset), or an age such as 30d."),
]
Symbols = Annotated[list[str] | None, typer.Option(help="Only these symbols.", show_default="all that had a gap")]
CreditsPerMinute = Annotated[
    int,
    typer.Option(
        envvar="CREDITS_PER_MINUTE", min=1, help="API credits per minute of your plan. A call costs 1; Basic has 8."
    ),
]
RestUrl = Annotated[str, typer.Option(envvar="TWELVE_DATA_REST_URL", help="Base URL of the REST interface.")]


def backfill(
    since: Since = "7d",
    symbols: Symbols = None,
    credits_per_minute: CreditsPerMinute = 8,
    rest_url: RestUrl = DEFAULT_URL,
) -> None:
    """Fill gaps of the feed with the vendor's one-minute bars. The view candles_1m_filled joins them to candles_1m.

    Needs TWELVE_DATA_API_KEY and the extra `backfill`. You can stop the command and run it again: it requests nothing
    twice. Exits with status 1 if the vendor refuses a symbol or does not answer.
    """
    with required_extra("backfill", "backfill"):
        from tickpipe.backfill import rate_limit, rest, run, store
    environ = cli.environment()
    key, database_url = settings.api_key(environ)(), cli.database_url()
    now, stop = datetime.now(UTC), process.stop_on_signals()
    begin = plan.read_since(since, now)
    only = _without_exchange(read_symbols(symbols, None)) if symbols else None
    result, limiter = run.BackfillResult(), rate_limit.RateLimiter(credits_per_minute, stop)
    with (
        closing(DatabaseClient(database_url)) as database,
        closing(rest.TwelveDataRest(rest_url, key, environ)) as vendor,
    ):
        try:
            with progress("looking for gaps") as report:
                log.configure("WARNING", [key, database_url])  # after the display has started: log lines go above it
                gaps, done = store.read(database, begin)
                wanted = [gap for gap in gaps if only is None or gap.symbol in only]
                run.run(
                    list(plan.plan(wanted, done, begin, now)),
                    lambda call: limiter.call(partial(vendor.bars, call.symbol, call.exchange, call.since, call.until)),
                    partial(store.keep, database, now=now),
                    result,
                    report,
                )
        finally:
            echo(str(result))
    if result.refused:
        refused = ", ".join(result.refused)
        raise TickpipeError(f"Twelve Data refuses bars of {refused}. Name the other symbols with --symbols")


def _without_exchange(symbols: list[str]) -> set[str]:
    """The symbols as given and without their exchange: gaps are recorded under either name."""
    return {name for symbol in symbols for name in (symbol, symbol.partition(":")[0])}
