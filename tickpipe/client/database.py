"""The questions about stored prices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, Self

import pyarrow as pa

from common.database.connections import database_name
from common.duration import Moment, read_moment
from common.errors import ConfigurationError, OutageError
from tickpipe.client import queries
from tickpipe.client.archive import Archive
from tickpipe.client.reader import Reader
from tickpipe.client.replay import read_speed, replay
from tickpipe.client.result import Result
from tickpipe.client.servers import Servers
from tickpipe.client.subscription import Subscription, subscribe
from tickpipe.client.symbols import Symbols, all_symbols, known_symbols, listed, read_names, refuse_unknown
from tickpipe.client.widths import ceiling, floor, read_width
from tickpipe.inspect.past import read_past

Fill = Literal["gaps", "previous"]

#: The views of candles, for spans from this length on: they also compute all candles that are not stored yet.
_VIEWS, _LONG = {timedelta(hours=1): "1h", timedelta(days=1): "1d"}, timedelta(days=30)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


class Database:
    """The prices of a tickpipe. `tickpipe.connect()` returns it; use it in a `with` block, or close it.

    `since` and `until` are an ISO date or datetime ("2026-11-01", "2026-11-01T14:30"), a datetime, or an age such as
    "90m", "1d" or "2w". Without an offset they are in UTC. `until` is excluded; by default it is now.

    All methods raise ConfigurationError for an invalid argument, an unknown symbol, and a schema that is missing, and
    OutageError if the database does not answer. Both are TickpipeErrors.
    """

    def __init__(
        self, reader: Reader, servers: Servers, now: Callable[[], datetime], archive: Archive | None = None
    ) -> None:
        self._reader = reader
        self._archive = archive
        self._servers = servers
        self._now = now

    def __repr__(self) -> str:
        return f"<tickpipe database {database_name(self._reader.url)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. A later question opens a new one."""
        self._reader.close()

    def symbols(self) -> list[str]:
        """All symbols with ticks or candles, sorted."""
        return all_symbols(self._reader.rows)

    def ticks(self, symbols: Symbols, since: Moment, until: Moment | None = None) -> Result:
        """The ticks of one symbol or of several, ordered by symbol, time, session and seq.

        Columns: time, symbol, price (float64), day_volume, bid, ask (float64 or null), exchange (string or null);
        size (float64), side ("buy" or "sell") and trade_id (int64) of a trade, else null; received_at; session and seq
        (int64), which identify the tick; source ("backfill", "import" or null). `time` is the exchange's, `received_at`
        the producer's. Ticks that retention has dropped come from the archive that `connect` was given.
        """
        names, (begin, end) = known_symbols(symbols, self._reader.rows), self._span(since, until)
        return Result(
            f"ticks of {listed(names, 3)}, {_range(begin, end)}",
            queries.TICK_SCHEMA,
            partial(self._all_ticks, names, begin, end),
        )

    def _all_ticks(self, names: Sequence[str], begin: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        horizon = self._horizon()
        if self._archive is None or horizon <= begin:
            yield from self._stored_ticks(names, begin, end)
            return
        dropped_until = min(horizon, end)
        for name in names:
            late = self._stored_ticks([name], begin, dropped_until)  # they arrived after their day was dropped
            yield from self._archive.batches(name, begin, dropped_until, late)
            if dropped_until < end:
                yield from self._stored_ticks([name], dropped_until, end)
        if self._horizon() != horizon:
            raise OutageError("retention has dropped ticks while they were read: read them again")

    def _stored_ticks(self, names: Sequence[str], begin: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        runs = [{"symbol": name, "since": begin, "until": end} for name in names]
        return self._reader.batches(queries.TICK_SCHEMA, queries.TICKS, *runs)

    def _horizon(self) -> datetime:
        """The time before which retention has dropped ticks."""
        return next((at for (at,) in self._reader.rows(queries.HORIZON)), _EPOCH)

    def candles(
        self,
        symbols: Symbols,
        width: str | timedelta,
        since: Moment,
        until: Moment | None = None,
        *,
        fill: Fill | None = None,
    ) -> Result:
        """The candles that begin from `since` to `until`, ordered by symbol and bucket. The last may be incomplete.

        `width`: whole minutes, such as "1m", "5m", "1h" or "1d", counted from 1970-01-01 UTC. The first candle is the
        one that contains `since`. Columns: symbol, bucket (the start of the candle), open, high, low, close (float64),
        ticks (int64), volume (float64, or null if the feed has none).

        `fill` None: only intervals with ticks. "gaps": a row for each interval between the first and the last candle of
        a symbol; without ticks its prices and volume are null, and ticks is 0. "previous": the same rows; without ticks
        the prices are the previous close, and ticks and volume are 0.
        """
        if fill not in queries.FILLS:
            raise ConfigurationError(f"fill {fill!r} is not a way to fill gaps. Use None, 'gaps' or 'previous'")
        step = read_width(width)
        names, (begin, end) = known_symbols(symbols, self._reader.rows), self._span(since, until)
        parameters = {
            "symbols": names,
            "width": step // timedelta(seconds=1),
            "since": floor(begin, step),
            "until": min(ceiling(end, step), ceiling(max(end, self._now()), timedelta(minutes=1))),
        }
        use_view = self._reader.has_stored_candles and end - begin >= _LONG
        query = queries.candles(fill, _VIEWS.get(step, "") if use_view else "")
        return Result(
            f"candles of {listed(names, 3)}, {width}, {_range(begin, end)}",
            queries.CANDLE_SCHEMA,
            partial(self._reader.batches, queries.CANDLE_SCHEMA, query, parameters),
        )

    def last(self, symbols: Symbols | None = None, since: Moment | None = None) -> Result:
        """The newest tick of each symbol, or of all. A symbol without a tick from `since` on has no row.

        A tick whose time is ahead of its arrival is not the newest. Columns: symbol, time, price, bid, ask, exchange,
        received_at, session, seq, as in `ticks`.
        """
        names = self.symbols() if symbols is None else known_symbols(symbols, self._reader.rows)
        begin = _EPOCH if since is None else read_moment(since, self._now(), "since")
        table = self._reader.table(queries.LAST_SCHEMA, queries.LAST, symbols=names, since=begin)
        return _stored(f"last ticks of {listed(names, 3)}", table)

    def gaps(self, symbols: Symbols | None = None, since: Moment | None = None, until: Moment | None = None) -> Result:
        """The times in which prices could not be received, ordered by since: those that overlap the span, or all.

        Columns: symbol (null: all symbols), since, until (null while it continues), cause. A gap without a symbol is in
        the result of every symbol.
        """
        now = self._now()
        begin = _EPOCH if since is None else read_moment(since, now, "since")
        end = _FAR_FUTURE if until is None else read_moment(until, now, "until")
        names = None if symbols is None else read_names(symbols)
        table = self._reader.table(queries.GAP_SCHEMA, queries.GAPS, symbols=names, since=begin, until=end)
        if names is not None:  # a symbol may have gaps and no ticks
            found = set(table["symbol"].to_pylist())
            refuse_unknown([name for name in names if name not in found], self._reader.rows)
        return _stored(f"gaps of {'all symbols' if names is None else listed(names, 3)}", table)

    def instruments(self) -> Result:
        """The feed's reports about each symbol and exchange, ordered by both.

        Columns: symbol, type, exchange, mic_code, currency, currency_base, currency_quote (string or null), first_seen,
        last_seen.
        """
        return _stored("instruments", self._reader.table(queries.INSTRUMENT_SCHEMA, queries.INSTRUMENTS))

    def subscribe(self, symbols: Symbols | None = None, since: Moment | None = None) -> Subscription:
        """Ticks as they arrive, of some symbols or of all: `for tick in db.subscribe("BTC/USD")`, or `async for`.

        Each is a `Tick`, in the order of receipt. `since`: ticks whose `time` is not earlier come first, then new ones,
        without a gap and without a double. The iteration does not end. It waits for the end of an outage of Redis or
        of the database, and logs a warning. If it was too slow for the streams, it reads what it missed from the
        database. Leave its `with` block, or call `close`, to end it.
        """
        names = None if symbols is None else known_symbols(symbols, self._reader.rows)
        begin = None if since is None else read_moment(since, self._now(), "since")
        return subscribe(self._servers, self._reader.client(), names, begin, threading.Event())

    def replay(
        self, since: Moment, until: Moment | None = None, *, symbols: Symbols | None = None, speed: float = 1.0
    ) -> Subscription:
        """Stored ticks through the interface of `subscribe`: each comes when it is due, in the order of receipt.

        So a strategy runs on the past and on the present unchanged. `since` and `until` bound the `time` of the ticks.
        `speed`: 1 as received, 60 for a minute a second, 0 for as fast as possible. The iteration ends after the last
        tick. It raises OutageError if the database does not answer.
        """
        factor, (begin, end) = read_speed(speed), self._span(since, until)
        names = None if symbols is None else known_symbols(symbols, self._reader.rows)
        database, stop = self._reader.client(), threading.Event()
        portions = read_past(database, begin, end, names)
        return Subscription(replay(database, portions, factor, stop, time.monotonic), stop)

    def _span(self, since: Moment, until: Moment | None) -> tuple[datetime, datetime]:
        now = self._now()
        begin = read_moment(since, now, "since")
        end = now if until is None else read_moment(until, now, "until")
        if begin >= end:
            raise ConfigurationError(f"since {begin:%Y-%m-%dT%H:%M:%S}Z is not before until {end:%Y-%m-%dT%H:%M:%S}Z")
        return begin, end


def _stored(title: str, batch: pa.RecordBatch) -> Result:
    return Result(title, batch.schema, lambda: iter([batch]))


def _range(begin: datetime, end: datetime) -> str:
    return f"{begin:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}"
