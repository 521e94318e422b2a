"""`tickpipe backfill`."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from common import cli, log, process, settings
from common.database.client import DatabaseClient
from common.duration import read_moment
from common.errors import TickpipeError
from common.formatting import counted
from common.symbols import read_symbols
from common.terminal import echo
from tickpipe.backfill import DEFAULT_URL, plan
from tickpipe.extras import required_extra
from tickpipe.terminal.progress import progress

Since = Annotated[
    str,
    typer.Option(help="Start: an ISO date or datetime (UTC unless it has an offset), or an age such as 30d or 90m."),
]
Symbols = Annotated[list[str] | None, typer.Option(help="Only these symbols.", show_default="all that had a gap")]
CreditsPerMinute = Annotated[
    int,
    typer.Option(
        envvar="CREDITS_PER_MINUTE", min=1, help="API credits per minute of your plan. A call costs 1; Basic has 8."
    ),
]
RestUrl = Annotated[
    str | None,
    typer.Option(envvar="FEED_REST_URL", help="Base URL of the REST interface.", show_default="the vendor's"),
]


def backfill(
    since: Since = "7d",
    symbols: Symbols = None,
    feed: settings.FeedOption = "twelvedata",
    credits_per_minute: CreditsPerMinute = 8,
    rest_url: RestUrl = None,
) -> None:
    """Fill gaps of the feed with what the vendor has.

    Of twelvedata: one-minute bars. The view candles_1m_filled joins them to candles_1m. Needs TWELVE_DATA_API_KEY.
    Of coinbase, kraken and binance: the trades that are missing by the numbers of the exchange. They become ticks.

    Needs the extra `backfill`. You can stop the command and run it again: it requests nothing twice. Exits with status
    1 if the vendor refuses a symbol or does not answer.
    """
    now, stop = datetime.now(UTC), process.stop_on_signals()
    begin = read_moment(since, now, "--since")
    only = _without_exchange(read_symbols(symbols, None)) if symbols else None
    if feed == "twelvedata":
        _store_bars(begin, now, only, credits_per_minute, DEFAULT_URL if rest_url is None else rest_url, stop)
    else:
        _store_trades(feed, begin, only, rest_url, stop)


def _store_trades(
    feed: str, begin: datetime, only: set[str] | None, rest_url: str | None, stop: threading.Event
) -> None:
    """Store trades that the exchange has numbered and not sent."""
    with required_extra("backfill", "tickpipe backfill"):
        from producer.feeds import VENDORS
        from tickpipe.backfill import rate_limit, trades
    environ, database_url, vendor = cli.environment(), cli.database_url(), VENDORS[feed]
    limiter = rate_limit.RateLimiter(vendor.requests_per_second, stop, period=1.0)
    stored: Counter[str] = Counter()
    with (
        closing(trades.TradesRest(vendor, rest_url, environ, limiter)) as exchange,
        closing(DatabaseClient(database_url)) as database,
    ):
        try:
            with progress("looking for trades") as report:
                log.configure("WARNING", [database_url])
                trades.drop_copies(database, begin)
                missing = [each for each in trades.read(database, vendor, begin) if not only or each.symbol in only]
                trades.repair(vendor, missing, exchange.trades, database, stored, report)
        finally:
            echo(f"stored {counted(stored.total(), 'trade')} of {counted(len(+stored), 'symbol')}")


def _store_bars(
    begin: datetime, now: datetime, only: set[str] | None, credits_per_minute: int, rest_url: str, stop: threading.Event
) -> None:
    """Store one-minute bars of Twelve Data for the gaps."""
    with required_extra("backfill", "tickpipe backfill"):
        from tickpipe.backfill import rate_limit, rest, run, store
    environ = cli.environment()
    key, database_url = settings.api_key(environ)(), cli.database_url()
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
