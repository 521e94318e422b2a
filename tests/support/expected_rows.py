"""The rows that the queries of docs/querying.md must return, computed in Python from the same ticks."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from tests.support.market import FULL, KILLED, NEW_YORK, NOW, QUIET, SILENT, SPRING, STOCKS, SYMBOLS, make_prices
from tests.support.market import Price as Tick

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

Rows = list[tuple[Any, ...]]


class Candle(NamedTuple):
    bucket: datetime
    open: float
    high: float
    low: float
    close: float
    ticks: int
    volume: float | None


PRICES = make_prices()


def ticks(symbol: str, since: datetime, until: datetime = NOW) -> list[Tick]:
    return [tick for tick in PRICES if tick.symbol == symbol and since <= tick.time < until]


def by_key(tick: Tick) -> tuple[datetime, int, int]:
    return tick.time, tick.session, tick.seq


def begin_of(moment: datetime, width: timedelta) -> datetime:
    return moment - (moment - datetime(1970, 1, 1, tzinfo=UTC)) % width


@cache
def minutes(symbol: str) -> list[Candle]:
    """The candles of all minutes with a tick."""
    bars: dict[datetime, list[Tick]] = defaultdict(list)
    for tick in PRICES:  # in order of receipt
        if tick.symbol == symbol:
            bars[begin_of(tick.time, MINUTE)].append(tick)
    candles, before, day = [], None, None
    for bucket, inside in sorted(bars.items()):
        volume = 0.0
        for count in (tick.day_volume for tick in inside if tick.day_volume is not None):
            if before is not None and count >= before:
                volume += count - before
            elif before is not None and (bucket.date() != day or count < before / 2):
                volume += count
            before, day = count, bucket.date()
        prices = [tick.price for tick in inside]
        told = volume if before is not None else None
        candles.append(Candle(bucket, prices[0], max(prices), min(prices), prices[-1], len(prices), told))
    return candles


def merged(bucket: datetime, candles: Sequence[Candle]) -> Candle:
    """Merge candles in order into one."""
    volumes = [candle.volume for candle in candles if candle.volume is not None]
    return Candle(
        bucket,
        candles[0].open,
        max(candle.high for candle in candles),
        min(candle.low for candle in candles),
        candles[-1].close,
        sum(candle.ticks for candle in candles),
        sum(volumes) if volumes else None,
    )


def by_hand(symbol: str, width: timedelta, since: datetime, until: datetime = NOW) -> list[Candle]:
    """The candles of the minutes that begin in a span."""
    bars: dict[datetime, list[Candle]] = defaultdict(list)
    for candle in minutes(symbol):
        if since <= candle.bucket < until:
            bars[begin_of(candle.bucket, width)].append(candle)
    return [merged(bucket, candles) for bucket, candles in bars.items()]


def in_new_york(day: date, hour: int, minute: int = 0) -> datetime:
    """The moment of this clock time in New York."""
    return datetime.combine(day, time(hour, minute), NEW_YORK).astimezone(UTC)


def equal(rows: Rows, expected: Iterable[Sequence[object]]) -> bool:
    """Whether the rows are equal, except for the last digits of sums and means."""
    wanted = [tuple(row) for row in expected]
    return len(rows) == len(wanted) > 0 and all(
        len(row) == len(other) and all(_equal(value, wish) for value, wish in zip(row, other, strict=True))
        for row, other in zip(rows, wanted, strict=True)
    )


def _equal(value: Any, wish: Any) -> bool:
    if isinstance(wish, float) and value is not None:
        return math.isclose(value, wish, rel_tol=1e-9)
    return bool(value == wish)


# The expected rows of each query, in the order of the page.


def last_prices(rows: Rows, now: datetime) -> None:
    newest = [max(ticks(symbol, now - 7 * DAY), key=by_key) for symbol in SYMBOLS]
    assert {row[0] for row in rows} == set(SYMBOLS)
    assert sorted(rows) == [(tick.symbol, tick.time, tick.price, tick.bid, tick.ask) for tick in newest]


def two_hours_of_msft(rows: Rows, now: datetime) -> None:
    assert equal(rows, by_hand("MSFT", MINUTE, now - 2 * HOUR))
    assert not {row[0] for row in rows} & {QUIET[0] + n * MINUTE for n in range(3)}


def every_minute_of_msft(rows: Rows, now: datetime) -> None:
    candles = {candle.bucket: candle for candle in minutes("MSFT")}
    bucket, expected, close = begin_of(now - 2 * HOUR, MINUTE), list[Sequence[object]](), None
    while bucket < now:
        candle = candles.get(bucket)
        close = candle.close if candle else close
        expected.append((bucket, close, candle.ticks if candle else 0))
        bucket += MINUTE
    assert equal(rows, expected)
    assert [row[2] for row in rows if QUIET[0] <= row[0] < QUIET[1]] == [0, 0, 0]


def days_of_aapl(rows: Rows, now: datetime) -> None:
    assert equal(rows, by_hand("AAPL", DAY, now - 30 * DAY))
    assert len(rows) == 4


def five_minutes_of_aapl(rows: Rows, now: datetime) -> None:
    assert equal(rows, by_hand("AAPL", 5 * MINUTE, begin_of(now - HOUR, 5 * MINUTE)))
    assert [later[0] - row[0] for row, later in pairwise(rows)] == [5 * MINUTE] * 12


def exchange_days(rows: Rows, now: datetime) -> None:
    expected = []
    for back in range(5, -1, -1):
        day = now.astimezone(NEW_YORK).date() - back * DAY
        since, until = in_new_york(day, 9, 30), in_new_york(day, 16)
        if candles := by_hand("AAPL", MINUTE, since, until):
            whole = merged(since, candles)
            expected.append((day, since, until, *whole[1:5], whole.volume))
    assert equal(rows, expected)
    assert {row[1].astimezone(UTC).time() for row in rows} == {time(13, 30), time(14, 30)}  # summer and winter


def fx_days(rows: Rows, now: datetime) -> None:
    expected = []
    for symbol in ("BTC/USD", "EUR/USD"):
        for back in range(4, -2, -1):
            day = now.astimezone(NEW_YORK).date() - back * DAY
            since, until = in_new_york(day - DAY, 17), in_new_york(day, 17)
            if candles := by_hand(symbol, HOUR, since, until):
                whole = merged(since, candles)
                expected.append((symbol, day, until - since, *whole[1:6]))
    assert equal(rows, expected)
    sunday = {NOW: timedelta(hours=25), SPRING: timedelta(hours=23)}[now]
    assert [row[1].weekday() for row in rows if row[2] != DAY] == [6]
    assert [row[2] for row in rows if row[2] != DAY] == [sunday]


def gaps_of_aapl(rows: Rows, now: datetime) -> None:
    assert now - 2 * DAY < KILLED[0]
    assert rows == [
        ("AAPL", *KILLED, KILLED[1] - KILLED[0], "stopped reporting"),
        ("AAPL", *SILENT, SILENT[1] - SILENT[0], "disconnected: no answer to the heartbeat"),
        (None, *FULL, FULL[1] - FULL[0], "overflow: spool full"),
    ]


def minutes_without_msft(rows: Rows, now: datetime) -> None:
    there = {candle.bucket for candle in minutes("MSFT")}
    missing = [
        minute
        for n in range(180)
        if (minute := begin_of(now - 3 * HOUR, MINUTE) + (n + 1) * MINUTE) not in there and minute < now
    ]
    causes = {
        SILENT: "disconnected: no answer to the heartbeat",
        FULL: "overflow: spool full",
        QUIET: "quiet: no tick came",
    }
    expected = [
        (minute, cause)
        for minute in missing
        for (since, until), cause in causes.items()
        if since < minute + MINUTE and until > minute
    ]
    assert rows == expected
    assert {cause for _, cause in rows} == set(causes.values())


def spreads(rows: Rows, now: datetime) -> None:
    hours: dict[datetime, list[tuple[float, float]]] = defaultdict(list)
    for tick in sorted(ticks("EUR/USD", now - DAY), key=lambda tick: tick.time):
        assert tick.bid is not None
        assert tick.ask is not None
        hours[begin_of(tick.time, HOUR)].append((tick.bid, tick.ask))
    assert [row[:2] for row in rows] == [(hour, len(quotes)) for hour, quotes in hours.items()]
    for (_, _, pips, widest, points), quotes in zip(rows, hours.values(), strict=True):
        spread = [ask - bid for bid, ask in quotes]
        relative = [(ask - bid) / ((ask + bid) / 2) for bid, ask in quotes]
        assert float(pips) == pytest.approx(statistics.fmean(spread) * 1e4, abs=0.00501)
        assert float(widest) == pytest.approx(max(spread) * 1e4, abs=0.00501)
        assert float(points) == pytest.approx(statistics.fmean(relative) * 1e4, abs=0.000501)


def volume_profile(rows: Rows, now: datetime) -> None:
    midnight = in_new_york(now.astimezone(NEW_YORK).date(), 0)
    levels: dict[float, float] = defaultdict(float)
    for candle in by_hand("AAPL", MINUTE, midnight):
        assert candle.volume is not None
        levels[math.floor((candle.high + candle.low + candle.close) / 3 / 0.25) * 0.25] += candle.volume
    assert equal([row[:2] for row in rows], sorted(levels.items(), reverse=True))
    whole = sum(levels.values())
    assert sum(row[1] for row in rows) == whole == day_volume("AAPL", midnight)
    assert [float(row[2]) for row in rows] == [pytest.approx(100 * row[1] / whole, abs=0.0501) for row in rows]


def day_volume(symbol: str, since: datetime) -> float:
    """The value of the counter."""
    return max(tick.day_volume for tick in ticks(symbol, since) if tick.day_volume is not None)


def correlation(rows: Rows, now: datetime) -> None:
    closes = [
        {candle.bucket: candle.close for candle in by_hand(symbol, 5 * MINUTE, now - 5 * DAY)} for symbol in STOCKS
    ]
    steps = [
        (bucket, bucket + 5 * MINUTE)
        for bucket in closes[0]
        if all(moment in close for moment in (bucket, bucket + 5 * MINUTE) for close in closes)
    ]
    returns = [[math.log(close[end] / close[begin]) for begin, end in steps] for close in closes]
    ((found, count),) = rows
    assert count == len(steps) > 100
    assert float(found) == pytest.approx(statistics.correlation(*returns), abs=0.0000501)
    assert 0.2 < found < 0.9  # the random walks share a part of their steps


def coins_with_names(rows: Rows, now: datetime) -> None:
    candles = by_hand("BTC/USD", HOUR, now - 3 * HOUR)
    assert [row[:3] for row in rows] == [("Bitcoin US Dollar", candle.bucket, candle.close) for candle in candles]
    assert [float(row[3]) for row in rows] == pytest.approx([candle.volume for candle in candles], abs=5.01e-7)


def instruments(rows: Rows, now: datetime) -> None:
    seen = {symbol: max(ticks(symbol, now - DAY), key=by_key).received_at for symbol in SYMBOLS}
    assert [row[:4] for row in rows] == [
        ("AAPL", "Apple Inc", "Common Stock", "NASDAQ"),
        ("BTC/USD", "Bitcoin US Dollar", "Digital Currency", "Coinbase Pro"),
        ("EUR/USD", None, "Physical Currency", None),
        ("MSFT", "Microsoft Corp", "Common Stock", "NASDAQ"),
    ]
    assert {row[0]: row[4] for row in rows} == seen


def candles_sum_up_to_the_counter(rows: Rows, now: datetime) -> None:
    counter = day_volume("AAPL", begin_of(now, DAY))
    assert rows == [(counter, counter)]


def what_was_missed_is_in_the_candle_after(rows: Rows, now: datetime) -> None:
    expected = by_hand("AAPL", MINUTE, now - 150 * MINUTE, now - 140 * MINUTE)
    assert equal(rows, [(candle.bucket, candle.ticks, candle.volume) for candle in expected])
    volumes = {row[0]: row[2] for row in rows}
    after = begin_of(SILENT[1], MINUTE)
    assert max(volumes, key=lambda bucket: volumes[bucket]) == after
    assert not [bucket for bucket in volumes if SILENT[0] < bucket < after]


@dataclass(frozen=True)
class Query:
    """The check of a query, and the symbols and period that it reads."""

    check: Callable[[Rows, datetime], None]
    symbols: Sequence[str] = ()
    back: timedelta = timedelta(0)
    reads_all: bool = False  #: reads all ticks of the symbol without TimescaleDB


QUERIES = {
    "The last price": [Query(last_prices)],
    "Candles for a chart": [
        Query(two_hours_of_msft, ["MSFT"], 2 * HOUR),
        Query(every_minute_of_msft, ["MSFT"], 3 * HOUR),
        Query(days_of_aapl, ["AAPL"], 30 * DAY, reads_all=True),
    ],
    "Resample to 5 minutes": [Query(five_minutes_of_aapl, ["AAPL"], HOUR)],
    "The exchange's day": [Query(exchange_days, ["AAPL"], 6 * DAY)],
    "The FX day": [Query(fx_days, ["EUR/USD", "BTC/USD"], 5 * DAY)],
    "Gaps": [Query(gaps_of_aapl), Query(minutes_without_msft, ["MSFT"], 3 * HOUR)],
    "Spread": [Query(spreads, ["EUR/USD"], DAY)],
    "Volume profile": [Query(volume_profile, ["AAPL"], DAY)],
    "Correlation of two symbols": [Query(correlation, ["AAPL", "MSFT"], 5 * DAY)],
    "Names": [Query(coins_with_names, ["BTC/USD"], 4 * HOUR), Query(instruments)],
    "Where volume comes from": [
        Query(candles_sum_up_to_the_counter, ["AAPL", "AAPL"], DAY),
        Query(what_was_missed_is_in_the_candle_after, ["AAPL"], 150 * MINUTE),
    ],
}


def polars_frame(names: dict[str, Any], _folder: Path) -> None:
    candles = by_hand("AAPL", 5 * MINUTE, NOW - DAY)
    frame = names["candles"]
    assert frame.schema["bucket"] == pl.Datetime("us", "UTC")
    assert equal(frame.rows(), [(*candle[:5], candle.volume) for candle in candles])


def pandas_frame(names: dict[str, Any], _folder: Path) -> None:
    candles = by_hand("AAPL", 5 * MINUTE, NOW - DAY)
    frame = names["candles"]
    assert str(frame.index.tz) == "UTC"
    assert equal(list(frame["close"].items()), [(candle.bucket, candle.close) for candle in candles])


def parquet_file(_names: dict[str, Any], folder: Path) -> None:
    (file,) = folder.iterdir()
    midnight = begin_of(NOW, DAY)
    expected = sorted(ticks("AAPL", midnight - DAY, midnight), key=by_key)
    assert len(expected) > 200
    frame = pl.read_parquet(file)
    assert frame.select(Tick._fields).rows() == expected
    assert [frame.schema[name] for name in ("time", "received_at")] == [pl.Datetime("us", "UTC")] * 2
    assert [frame.schema[name] for name in ("bid", "session")] == [pl.Float64, pl.Int64]


Program = Callable[[dict[str, Any], Path], None]
PROGRAMS: dict[str, list[Program]] = {"pandas and polars": [polars_frame, pandas_frame], "Parquet": [parquet_file]}
