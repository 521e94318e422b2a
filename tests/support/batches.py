"""Batches of stream entries for the consumer, and the rows and dead letters that they become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from common.streams.stream import Entry
from tests.support.pipeline import Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


SESSION = 1_760_000_000_000_000


GOOD = {
    "session": str(SESSION), "seq": "1", "symbol": "BTC/USD", "time": "1760000000", "price": "96480.5",
    "day_volume": "1234.5", "bid": "96480.25", "ask": "96480.75", "exchange": "Coinbase Pro",
    "received": str(SESSION + 1),
}  # fmt: skip


def entry(number: int, **values: str | bytes) -> Entry:
    """A valid tick with this number, except for these values."""
    fields: Mapping[str, str | bytes] = {**GOOD, "seq": str(number), "received": str(SESSION + number), **values}
    return raw_entry(number, {name.encode(): to_bytes(value) for name, value in fields.items()})


def raw_entry(number: int, fields: Mapping[bytes, bytes] | None) -> Entry:
    parts = None if fields is None else [part for pair in fields.items() for part in pair]
    return Entry(b"1760000000000-%d" % number, parts)


def to_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")  # as common.streams.stream does


def make_batch(count: int) -> list[Entry]:
    return [entry(number) for number in range(1, count + 1)]


def seqs(database: Database) -> list[int]:
    return [seq for (seq,) in database.query("SELECT seq FROM prices_real_time ORDER BY seq")]


def letters(database: Database) -> dict[bytes, tuple[str, list[bytes]]]:
    """Reason and raw entry of each dead letter by entry id. Ids are unique."""
    rows = database.query("SELECT entry_id, reason, raw, stream FROM dead_letters")
    assert {stream for *_, stream in rows} <= {"prices"}
    found = {entry_id.encode(): (reason, [bytes(part) for part in raw]) for entry_id, reason, raw, _ in rows}
    assert len(found) == len(rows)
    return found


def flat(entry: Entry) -> list[bytes]:
    return [part for pair in (entry.fields or {}).items() for part in pair]


@contextmanager
def refused(database: Database, symbol: str, sqlstate: str) -> Iterator[None]:
    """Make the database refuse the rows of a symbol with this SQLSTATE."""
    database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END$$"
    )
    try:
        database.query(
            "CREATE TRIGGER refuse BEFORE INSERT ON prices_real_time FOR EACH ROW "
            f"WHEN (NEW.symbol = '{symbol}') EXECUTE FUNCTION refuse()"
        )
        yield
    finally:
        database.query("DROP FUNCTION refuse CASCADE")
