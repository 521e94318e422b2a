"""Compares the database with the simulator's own journal, without relying on the producer's numbers."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import psycopg2

from common.channels import channel_of
from tickpipe.simulator.random_walk import Event

#: Symbols of the run.
SYMBOLS = ("BTC/USD", "ETH/USD", "EUR/USD", "AAPL")
#: Two symbols for each of eight channels.
SYMBOLS_OF_CHANNELS = (
    "KO", "SOL/USD", "META", "XAU/USD", "BAC", "EUR/USD", "MSFT", "BTC/USD",
    "AAPL", "ETH/USD", "JPM", "EUR/JPY", "AMZN", "LTC/USD", "NVDA", "NZD/USD",
)  # fmt: skip
#: Sessions that have a price from after the first one of a later session of the same channel: while two producers are
#: active, a real vendor sends both the same prices.
DOUBLED = """
WITH spans AS (
    SELECT session, min(received_at) AS since, max(received_at) AS until,
           (SELECT detail ->> 'channel' FROM feed_events AS e
            WHERE e.session = p.session AND event = 'started') AS channel
    FROM prices_real_time AS p GROUP BY session
)
SELECT earlier.session
FROM spans AS earlier JOIN spans AS later ON later.channel IS NOT DISTINCT FROM earlier.channel
WHERE later.session > earlier.session AND earlier.until >= later.since
"""


class Numbered:
    """Price events with the unique prices 1, 2, 3 … Every `bad_every`-th event cannot be stored."""

    def __init__(self, bad_every: int) -> None:
        self._bad_every = bad_every
        self._count = itertools.count(1)

    def instrument(self, symbol: str) -> Event | None:
        """See EventSource."""
        if symbol not in (*SYMBOLS, *SYMBOLS_OF_CHANNELS):
            return None
        return {"symbol": symbol, "exchange": "Test", "mic_code": "TEST", "country": "", "type": "Test"}

    def event(self, symbol: str, exchange: str | None, now: float) -> Event:  # noqa: ARG002
        """See EventSource."""
        number = next(self._count)
        event: Event = {"event": "price", "symbol": symbol, "exchange": "Test", "timestamp": int(now), "price": number}
        if number % self._bad_every == 0:
            kinds = ({"price": f"bad {number}"}, {"timestamp": int(now * 1000)}, {"symbol": "X" * 65}, {"bid": "NaN"})
            event |= kinds[number // self._bad_every % len(kinds)]
        return event


class Sent(NamedTuple):
    """An event sent on a connection, and the time in seconds since 1970."""

    number: int
    symbol: str
    at: float


class Gap(NamedTuple):
    """A row of feed_gaps, with times in seconds since 1970."""

    symbol: str | None
    since: float
    until: float
    cause: str


@dataclass
class Judgement:
    """The outcome of every event. `faults` is empty after a run without a loss."""

    sent: int = 0
    stored: int = 0
    dead_letters: int = 0
    in_gaps: int = 0
    repaired: int = 0  # trades that `backfill` has stored
    faults: list[str] = field(default_factory=list)
    #: For each producer kill that lost events: seconds from the first lost event to the kill.
    kill_costs: list[float] = field(default_factory=list)


class Journal:
    """The events that the simulator sent on each connection."""

    def __init__(self, clock: Any) -> None:
        self.connections: dict[int, list[Sent]] = {}
        self._clock = clock

    def __call__(self, connection: int, event: Event) -> None:
        """Record an event. The simulator calls this in its own thread."""
        number = int(str(event["price"]).removeprefix("bad "))
        self.connections.setdefault(connection, []).append(Sent(number, event["symbol"], self._clock()))


def judge(database_url: str, journal: Journal, kills: Sequence[float], channels: int = 1) -> Judgement:
    """Check that each event is stored exactly once, is a dead letter or falls in a recorded gap.

    Only the end of a connection can be missing, because TCP and tickpipe keep the order, by channel. A gap must be
    recorded between its last stored price and the first price of a later connection. `kills`: times of producer kills,
    in seconds since 1970. `channels`: the producer's `--partitions`.
    """
    with closing(psycopg2.connect(database_url)) as database, database.cursor() as cursor:
        cursor.execute("SELECT price, symbol, extract(epoch FROM received_at)::float8 FROM prices_real_time")
        rows = cursor.fetchall()
        cursor.execute("SELECT raw FROM dead_letters WHERE stream NOT LIKE '%:feed'")
        dead = Counter(_dead_number(raw) for (raw,) in cursor.fetchall())
        cursor.execute("SELECT symbol, since, until, cause FROM feed_gaps")
        gaps = [Gap(symbol, _seconds(since), _seconds(until), cause) for symbol, since, until, cause in cursor]

    judgement = Judgement(stored=len(rows), dead_letters=sum(dead.values()))
    times = Counter(int(price) for price, _, _ in rows)
    received = {int(price): at for price, _, at in rows}
    symbols = {int(price): symbol for price, symbol, _ in rows}
    doubled = [number for number, count in (times + dead).items() if count > 1]
    if doubled:
        judgement.faults.append(f"DOUBLED: {len(doubled)} events, {doubled[:10]}")
    everything = {sent.number: sent for sents in journal.connections.values() for sent in sents}
    if invented := [number for number in times if number not in everything]:
        judgement.faults.append(f"INVENTED: {invented[:10]}")
    if changed := [number for number, symbol in symbols.items() if everything[number].symbol != symbol]:
        judgement.faults.append(f"CHANGED: {changed[:10]}")

    first_received = {
        number: min((received[sent.number] for sent in sents if sent.number in received), default=None)
        for number, sents in journal.connections.items()
    }
    for number, sents in sorted(journal.connections.items()):
        judgement.sent += len(sents)
        later = [at for other, at in first_received.items() if other > number and at is not None]
        for channel in range(channels):
            own = [sent for sent in sents if channel_of(sent.symbol, channels) == channel]
            if own:
                _judge_channel(judgement, own, times + dead, received, min(later, default=math.inf), gaps, kills)
    return judgement


def _judge_channel(
    judgement: Judgement,
    sents: Sequence[Sent],
    found: Mapping[int, int],
    received: Mapping[int, float],
    following: float,
    gaps: Sequence[Gap],
    kills: Sequence[float],
) -> None:
    """Check a channel of one connection. `following` is the receipt time of the next connection's first price."""
    there = [sent.number in found for sent in sents]
    kept = max((index for index, stored in enumerate(there) if stored), default=-1) + 1
    if holes := [sents[index] for index in range(kept) if not there[index]]:
        judgement.faults.append(f"LOST: {len(holes)} events inside a connection, {holes[:3]}")
    lost = sents[kept:]
    if not lost:
        return
    judgement.in_gaps += len(lost)
    last = max((received[sent.number] for sent in sents[:kept] if sent.number in received), default=sents[0].at)
    for symbol in {sent.symbol for sent in lost} & {*SYMBOLS, *SYMBOLS_OF_CHANNELS}:
        # A paused or busy producer may leave 5 s of events in the socket before it receives them.
        since = min(following, lost[0].at + 5.0)
        if not any(gap.symbol == symbol and gap.since < since and gap.until > last for gap in gaps):
            judgement.faults.append(
                f"LOST WITHOUT A GAP: {symbol}, {len(lost)} events of a connection, between {last:.3f} and "
                f"{following:.3f}; gaps: {[gap for gap in gaps if gap.symbol == symbol]}"
            )
    # Count the cost of a kill only if no other fault had cut the connection before.
    well = [kill for kill in kills if kill - 0.25 <= sents[-1].at <= kill + 0.25]
    judgement.kill_costs += [kill - lost[0].at for kill in well if lost[0].at <= kill and last <= kill <= following]


def compare_with_verify(judgement: Judgement, said: str) -> list[str]:
    """Differences between `tickpipe verify --all --json` and the oracle."""
    verdicts = json.loads(said)
    faults = [f"verify: {verdict}" for verdict in verdicts if not verdict["sound"]]
    if sum(verdict["stored"] for verdict in verdicts) != judgement.stored:
        faults.append(f"verify counts {sum(v['stored'] for v in verdicts)} rows, the table has {judgement.stored}")
    return faults


def _dead_number(raw: Sequence[memoryview]) -> int:
    parts = [bytes(part) for part in raw]
    return int(dict(zip(parts[::2], parts[1::2], strict=True))[b"price"].removeprefix(b"bad "))


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else math.inf
