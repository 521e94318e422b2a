"""Plausible prices, the same for all clients: stream entries, websocket frames, and rows of a filled table."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any, cast

import hiredis
import psycopg2
import redis

from common import tick
from producer.feeds.twelvedata import TwelveData
from tickpipe.simulator.listings import LISTINGS
from tickpipe.simulator.random_walk import RandomWalk

#: Exchange time of the stream's first entry, seconds UTC. Rows of a filled table are older.
BEGIN = 1_780_000_000
#: Price events per second of exchange time, all symbols together. Many ticks share a symbol and a second.
MARKET_RATE = 500
#: Sessions of the stream's entries and of the filled table's rows.
SESSION, EARLIER_SESSION = BEGIN * 1_000_000, (BEGIN - 86_400) * 1_000_000

_BASE = 20_000  # distinct events; after them prices repeat, while times and numbers continue

FILL = """
INSERT INTO prices_real_time (time, symbol, price, day_volume, bid, ask, exchange, received_at, session, seq)
SELECT to_timestamp(%(begin)s - (%(rows)s - n) / %(rate)s - 1), (%(symbols)s::text[])[n %% %(symbols_count)s + 1],
       100 + n %% 997 / 100.0, n, 99.99 + n %% 997 / 100.0, 100.01 + n %% 997 / 100.0, 'NASDAQ',
       to_timestamp(%(begin)s - 1 - (%(rows)s - n) / %(rate)s::float8), %(session)s, n
FROM generate_series(%(first)s, %(last)s) AS n
"""


def events(count: int, first: int = 0, begin: int = BEGIN) -> Iterator[dict[str, Any]]:
    """Price events in Twelve Data's format, of all the simulator's symbols in turn, after the `first` ones.

    `begin`: first exchange time, seconds UTC.
    """
    walk = RandomWalk(random.Random(1))
    symbols = islice(cycle(LISTINGS), _BASE)
    base = [walk.event(symbol, None, BEGIN + number / MARKET_RATE) for number, symbol in enumerate(symbols)]
    for number in range(first, first + count):
        yield base[number % _BASE] | {"timestamp": begin + number // MARKET_RATE}


def entries(count: int, first: int = 0, begin: int = BEGIN) -> Iterator[dict[str, str]]:
    """Fields of stream entries, as appended by a producer that started at `begin`, after the `first` ones."""
    session = begin * 1_000_000
    for seq, event in enumerate(events(count, first, begin), first + 1):
        text = cast("dict[str, Any]", {name: _text(value) for name, value in event.items()})
        received = session + seq * 1_000_000 // MARKET_RATE
        yield tick.encode(TwelveData().parse(text, session, seq, received))


def _text(value: object) -> object:
    return value if isinstance(value, str) else json.dumps(value)


def load(client: redis.Redis, key: str, count: int, first: int = 0, begin: int = BEGIN) -> None:
    """Replace the stream `key` by `count` entries after the `first` ones, without a group."""
    client.delete(key)
    connection = client.connection_pool.get_connection()
    try:
        unsent = entries(count, first, begin)
        while batch := list(islice(unsent, 2_000)):
            packed = [hiredis.pack_command(("XADD", key, "*", *_flat(fields))) for fields in batch]
            connection.send_packed_command(packed)  # type: ignore[no-untyped-call]
            for _ in packed:
                connection.read_response()
    finally:
        client.connection_pool.release(connection)


def _flat(fields: dict[str, str]) -> Iterable[str]:
    return (part for pair in fields.items() for part in pair)


def fill(connection: psycopg2.extensions.connection, rows: int) -> None:
    """Fill the table with `rows` ticks received in order before BEGIN, then vacuum it."""
    symbols = list(LISTINGS)
    values = {
        "begin": BEGIN, "rows": rows, "rate": MARKET_RATE, "symbols": symbols, "symbols_count": len(symbols),
        "session": EARLIER_SESSION,
    }  # fmt: skip
    with connection.cursor() as cursor:
        for first in range(1, rows + 1, 250_000):
            cursor.execute(FILL, {**values, "first": first, "last": min(rows, first + 249_999)})
        cursor.execute("VACUUM ANALYZE prices_real_time")


def frames(count: int) -> Iterator[bytes]:
    """Price events as a server's websocket text frames."""
    return (frame(json.dumps(event).encode()) for event in events(count))


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """An unmasked websocket frame (RFC 6455, section 5.2). The payload has at most 65,535 bytes."""
    head = bytes([0x80 | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    return head + b"\x7e" + len(payload).to_bytes(2, "big") + payload
