"""A synthetic market: two stocks, a currency pair and a coin, for days around both clock changes in New York.

Prices arrive as from the feed: several per second, some late, and with volume counters that restart. In some spans
nothing is stored while the counters continue.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from common import tick
from common.database.client import DatabaseClient
from common.tick import Tick
from consumer.tables import PRICES
from consumer.writer import Writer
from tests.support.sessions import StoredSession, entry

NEW_YORK = ZoneInfo("America/New_York")
#: A Tuesday at 12:30 in New York. The clocks went back on Sunday.
NOW = datetime(2025, 11, 4, 17, 30, 30, tzinfo=UTC)
BEGIN = datetime(2025, 10, 30, tzinfo=UTC)
#: A Monday. The clocks went forward on Sunday.
SPRING = datetime(2025, 3, 10, 18, 0, 30, tzinfo=UTC)
SPRING_BEGIN = datetime(2025, 3, 6, tzinfo=UTC)

STOCKS = {"AAPL": 270.0, "MSFT": 520.0}
SYMBOLS = ("AAPL", "BTC/USD", "EUR/USD", "MSFT")

Span = tuple[datetime, datetime]
#: The producer was killed and restarted.
KILLED: Span = datetime(2025, 11, 3, 20, 15, tzinfo=UTC), datetime(2025, 11, 3, 20, 21, tzinfo=UTC)
#: The websocket was silent, from the last frame to the next subscription.
SILENT: Span = datetime(2025, 11, 4, 15, 2, 10, tzinfo=UTC), datetime(2025, 11, 4, 15, 7, 20, tzinfo=UTC)
#: The spool was full: events were numbered and lost.
FULL: Span = datetime(2025, 11, 4, 16, 39, 50, tzinfo=UTC), datetime(2025, 11, 4, 16, 41, 10, tzinfo=UTC)
#: MSFT had no trades and the feed had no gap.
QUIET: Span = datetime(2025, 11, 4, 16, 11, tzinfo=UTC), datetime(2025, 11, 4, 16, 14, tzinfo=UTC)


class Price(NamedTuple):
    """A row of prices_real_time."""

    symbol: str
    time: datetime
    price: float
    day_volume: float | None
    bid: float | None
    ask: float | None
    exchange: str | None
    received_at: datetime
    session: int
    seq: int


def make_prices(seed: int = 7) -> list[Price]:
    """All received prices, in order."""
    rng = random.Random(seed)
    spring, autumn = _Market(rng, SPRING_BEGIN, SPRING, slower=4), _Market(rng, BEGIN, NOW)
    quotes = sorted([*spring.quotes(), *autumn.quotes()], key=lambda quote: quote.received_at)
    newest = next(quote for quote in reversed(quotes) if quote.symbol == "AAPL")
    price, received = round(newest.price + 0.02, 2), newest.received_at + timedelta(milliseconds=1)
    quotes.append(newest._replace(price=price, received_at=max(received, quotes[-1].received_at)))  # in the same second
    prices: list[Price] = []
    received = SPRING_BEGIN
    seqs = dict.fromkeys(map(_microseconds, _STARTS), 0)
    for quote in quotes:
        if _within(quote.received_at, KILLED) or _within(quote.received_at, SILENT):
            continue
        received = max(received + timedelta(microseconds=1), quote.received_at)
        session = _microseconds(_STARTS[bisect(_STARTS, received) - 1])
        seqs[session] += 1
        if not _within(received, FULL):
            prices.append(quote._replace(received_at=received, session=session, seq=seqs[session]))
    return prices


def fill(store: DatabaseClient, prices: Sequence[Price]) -> None:
    """Store prices and feed events as consumers do."""
    entries = [entry(tick.encode(_tick(price))) for price in prices]
    for begin in range(0, len(entries), 1000):
        Writer(store).insert_batch(PRICES, "prices", entries[begin : begin + 1000])
    last = {price.session: price.seq for price in prices}
    for start, end in zip(_STARTS, [*_STARTS[1:], None], strict=True):
        session = StoredSession(store, start.timestamp())
        session.emit("started", 0, feed="twelvedata", symbols=SYMBOLS)
        session.emit("connected", 0)
        session.emit("subscribed", 0, symbols=SYMBOLS)
        for detail in _instruments():
            session.emit("instrument", 1, **detail)
        if end is None:
            _tell_today(session, prices)
        elif end == KILLED[1]:
            session.emit("alive", (KILLED[0] - start).total_seconds(), last_seq=last[session.id])
        else:
            stopped = SPRING if start < SPRING < end else end
            session.emit("stopped", (stopped - start).total_seconds(), last_seq=last[session.id])


def _tell_today(session: StoredSession, prices: Sequence[Price]) -> None:
    def after(moment: datetime) -> float:
        return moment.timestamp() - session.start

    lost, again = SILENT
    cause = "no answer to the heartbeat"
    session.emit("disconnected", after(lost) + 30, cause=cause, last_frame=_microseconds(lost))
    session.emit("connected", after(again))
    session.emit("subscribed", after(again), symbols=SYMBOLS)
    before, later = next(
        (one, other) for one, other in pairwise(prices) if one.received_at < FULL[0] <= other.received_at
    )
    since, until = map(_microseconds, FULL)
    numbers = {"first_seq": before.seq + 1, "last_seq": later.seq - 1}
    session.emit("overflow", after(FULL[1]), **numbers, since=since, until=until, cause="spool full")
    # The last report is far in the future, so the session never looks ended.
    session.emit("alive", after(datetime(2099, 1, 1, tzinfo=UTC)), last_seq=prices[-1].seq)


class _Walk:
    """A random walk with one step per minute."""

    def __init__(self, rng: random.Random, begin: datetime, end: datetime, step: float) -> None:
        self._begin = begin
        self._values = [0.0]
        for _ in range(int((end - begin).total_seconds() // 60) + 1):
            self._values.append(self._values[-1] + rng.gauss(0, step))

    def at(self, moment: datetime) -> float:
        minute, rest = divmod((moment - self._begin).total_seconds(), 60)
        before, after = self._values[int(minute) : int(minute) + 2]
        return before + (after - before) * rest / 60


class _Market:
    """The prices of all symbols in a span. The last day is the busiest."""

    def __init__(self, rng: random.Random, begin: datetime, end: datetime, slower: int = 1) -> None:
        self._rng, self._begin, self._end, self._slower = rng, begin, end, slower
        self._mood = self._walk(0.0004)  # shared by the stocks

    def quotes(self) -> Iterator[Price]:
        yield from self._stocks()
        yield from self._euro()
        yield from self._bitcoin()

    def _stocks(self) -> Iterator[Price]:
        for symbol, base in STOCKS.items():
            own = self._walk(0.0003)
            for day in self._days():
                if day.weekday() >= 5:
                    continue
                volume = float(self._rng.randrange(100_000, 300_000))
                step = (5, 36) if day.date() == self._end.date() else (40, 120)
                for moment in self._moments(_at(day, 9), _at(day, 16, 15), step):
                    if symbol == "MSFT" and _within(moment, QUIET):
                        continue
                    volume += self._rng.randrange(100, 9_000)
                    price = round(base * math.exp(self._mood.at(moment) + own.at(moment)), 2)
                    yield from self._quote(moment, symbol, price, volume, exchange="NASDAQ")

    def _euro(self) -> Iterator[Price]:
        own = self._walk(0.00006)
        for day in self._days():  # an FX day starts at 17:00 of the previous day; Saturday and Sunday have none
            if day.weekday() >= 5:
                continue
            for moment in self._moments(_at(day - timedelta(days=1), 17), _at(day, 17), (120, 600)):
                half = self._rng.choice([1, 2, 2, 3, 4]) * (4e-5 if moment.astimezone(NEW_YORK).hour == 17 else 1e-5)
                yield from self._quote(moment, "EUR/USD", round(1.155 * math.exp(own.at(moment)), 5), None, half, 5)

    def _bitcoin(self) -> Iterator[Price]:
        own = self._walk(0.0005)
        volume, day = 0.0, self._begin.date()
        for moment in self._moments(self._begin, self._end, (60, 900)):
            if moment.date() != day:
                volume, day = 0.0, moment.date()
            volume = round(volume + self._rng.randrange(1, 4_000_000) / 1e6, 6)
            price = round(108_000 * math.exp(own.at(moment)), 2)
            yield from self._quote(moment, "BTC/USD", price, volume, 5.0, exchange="Coinbase Pro")

    def _quote(
        self, moment: datetime, symbol: str, price: float, volume: float | None, half: float = 0.0, digits: int = 2,
        exchange: str | None = None,
    ) -> Iterator[Price]:  # fmt: skip
        """One price or two: in the same second, or the second with an earlier time."""
        bid, ask = (round(price - half, digits), round(price + half, digits)) if half else (None, None)
        received = moment + timedelta(milliseconds=self._rng.randrange(80, 400))
        first = Price(symbol, moment, price, volume, bid, ask, exchange, received, 0, 0)
        yield first
        if self._rng.random() < 0.1:
            again = round(price * (1 + self._rng.choice([-1, 1]) * 1e-4), digits)
            late = timedelta(seconds=self._rng.choice([0, 0, min(3, moment.second)]))
            yield first._replace(price=again, time=moment - late, received_at=received + timedelta(milliseconds=300))

    def _moments(self, begin: datetime, end: datetime, step: tuple[int, int]) -> Iterator[datetime]:
        """Whole seconds within the span, some seconds apart."""
        step = step[0] * self._slower, step[1] * self._slower
        moment = max(begin, self._begin) + timedelta(seconds=self._rng.randrange(*step))
        while moment < min(end, self._end - timedelta(seconds=1)):
            yield moment
            moment += timedelta(seconds=self._rng.randrange(*step))

    def _walk(self, step: float) -> _Walk:
        return _Walk(self._rng, self._begin, self._end, step)

    def _days(self) -> Iterator[datetime]:
        """The dates of New York in the span."""
        for days in range((self._end - self._begin).days + 2):
            yield datetime(self._begin.year, self._begin.month, self._begin.day, tzinfo=NEW_YORK) + timedelta(days=days)


def _at(midnight: datetime, hour: int, minute: int = 0) -> datetime:
    """The moment of a New York clock time on this day."""
    return midnight.replace(hour=hour, minute=minute).astimezone(UTC)


def _within(moment: datetime, span: Span) -> bool:
    return span[0] <= moment < span[1]


def _midnights(begin: datetime, end: datetime) -> list[datetime]:
    return [begin + timedelta(days=days) for days in range((end - begin).days + 1)]


def _instruments() -> Iterator[dict[str, str]]:
    for symbol in STOCKS:
        yield {"symbol": symbol, "type": "Common Stock", "exchange": "NASDAQ", "mic_code": "XNGS", "currency": "USD"}
    yield {"symbol": "EUR/USD", "type": "Physical Currency", "currency_base": "Euro", "currency_quote": "US Dollar"}
    coin = {"symbol": "BTC/USD", "type": "Digital Currency", "exchange": "Coinbase Pro"}
    yield {**coin, "currency_base": "Bitcoin", "currency_quote": "US Dollar"}


def _tick(price: Price) -> Tick:
    times = {"time": int(price.time.timestamp()), "received": _microseconds(price.received_at)}
    values = {**price._asdict(), **times}
    return Tick(**{name: str(values[name]) if values[name] is not None else "" for name in Tick._fields[:10]})


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


#: Session starts: midnight UTC and after the kill.
_STARTS = sorted([*_midnights(SPRING_BEGIN, SPRING), *_midnights(BEGIN, NOW), KILLED[1]])
