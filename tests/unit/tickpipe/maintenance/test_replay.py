"""What `tickpipe replay` and `verify --repair` store again: everything, or exactly what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from common.database.client import DatabaseClient
from common.streams.stream import Entry
from consumer.replay import Route
from consumer.tables import FEED, PRICES, TableWriter
from consumer.writer import Stored, Writer
from producer.spool import Outgoing, Spool
from producer.spool_folder import spool_path
from tests.unit.conftest import StreamMaker
from tickpipe.inspect.verdict import Verdict
from tickpipe.maintenance import dead_letters, replay
from tickpipe.maintenance.replay import Replayed
from tickpipe.ranges import Range

SESSION = 1_000_000
NO_STORE = cast("DatabaseClient", None)


class Table:
    """Keeps what it is given, by stream: (session, number). Entries with a field `bad` become dead letters."""

    def __init__(self) -> None:
        self.rows: dict[str, set[tuple[int, int]]] = {"prices": set(), "prices:feed": set()}

    def insert_batch(self, table: TableWriter, stream: str, entries: Sequence[Entry]) -> Stored:
        assert table is (FEED if stream.endswith(":feed") else PRICES)
        before, dead = len(self.rows[stream]), 0
        for entry in entries:
            fields = entry.fields or {}
            if b"bad" in fields:
                dead += 1
            else:
                number = fields.get(b"seq", fields.get(b"number", b""))
                self.rows[stream].add((int(fields[b"session"]), int(number)))
        new = len(self.rows[stream]) - before
        return Stored(new, len(entries) - new - dead, dead)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def routes(make_stream: StreamMaker) -> dict[str, Route]:
    """With prices 1 to 30 and feed events 1 to 3."""
    prices, feed = make_stream("prices"), make_stream("prices:feed")
    prices.append([{"session": str(SESSION), "seq": str(number)} for number in range(1, 31)])
    feed.append([{"session": str(SESSION), "number": str(number)} for number in range(1, 4)])
    return {"prices": Route(prices, PRICES), "feed": Route(feed, FEED)}


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> dict[int, dead_letters.DeadLetter]:
    """The table of dead letters, by id."""
    found: dict[int, dead_letters.DeadLetter] = {}

    def find(_: DatabaseClient, wanted: dead_letters.Filter, *, limit: int) -> list[dead_letters.DeadLetter]:
        return [letter for letter in found.values() if letter.session == wanted.session][:limit]

    monkeypatch.setattr(dead_letters, "find", find)
    monkeypatch.setattr(dead_letters, "delete", lambda _, number: found.pop(number))
    return found


def verdict(**findings: object) -> Verdict:
    """A session's verdict, with these findings."""
    return Verdict(SESSION, "twelvedata", alive=False, stopped=True, idle=0.0, expected=30, stored=0, **findings)  # type: ignore[arg-type]


def repair(
    table: Table, routes: dict[str, Route], folder: Path, *verdicts: Verdict
) -> tuple[dict[str, Replayed], set[int]]:
    """The results by place, and the numbers of the prices that were stored."""
    results = replay.repair([routes], cast("Writer", table), NO_STORE, {"prices": folder}, verdicts)
    return results, {number for _, number in table.rows["prices"]}


def test_replay_stores_both_streams_and_reports_progress(table: Table, routes: dict[str, Route]) -> None:
    said: list[tuple[object, ...]] = []
    table.rows["prices"] |= {(SESSION, number) for number in range(1, 11)}
    results = replay.replay([routes], cast("Writer", table), progress=lambda *numbers: said.append(numbers))
    assert results == {"prices": Replayed(30, 20), "feed": Replayed(3, 3)}
    assert said[-1][:2] == (33, 33)
    assert len(table.rows["prices"]) == 30


def test_replay_begins_at_an_id(table: Table, routes: dict[str, Route]) -> None:
    later = [entry.id for entry in routes["prices"].stream.scan(b"-", 100)][20]
    results = replay.replay([{"prices": routes["prices"]}], cast("Writer", table), later)
    assert results == {"prices": Replayed(10, 10)}


@pytest.mark.usefixtures("letters")
def test_repair_stores_exactly_what_is_missing(table: Table, routes: dict[str, Route], tmp_path: Path) -> None:
    findings = verdict(missing=[Range(3, 5), Range(30, 40)], missing_events=[Range(2, 2)])
    results, numbers = repair(table, routes, tmp_path, findings)
    assert results["streams"] == Replayed(5, 5)
    assert numbers == {3, 4, 5, 30}
    assert table.rows["prices:feed"] == {(SESSION, 2)}


@pytest.mark.usefixtures("letters")
def test_repair_leaves_other_sessions_and_entries_without_a_number(
    table: Table, routes: dict[str, Route], tmp_path: Path
) -> None:
    prices = routes["prices"].stream
    prices.append([{"session": "5", "seq": "4"}, {"seq": "4"}, {"session": str(SESSION), "seq": "four"}])
    results, numbers = repair(table, routes, tmp_path, verdict(missing=[Range(4, 4)]))
    assert (results["streams"], numbers) == (Replayed(1, 1), {4})


@pytest.mark.usefixtures("letters")
def test_repair_stores_spools_even_if_one_cannot_be_read(
    table: Table, routes: dict[str, Route], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Spool(spool_path(tmp_path, SESSION), max_bytes=10**6)) as spool:
        spool.put([Outgoing("prices", {"session": str(SESSION), "seq": str(number)}) for number in (31, 32)])
        spool.put([Outgoing("feed", {"session": str(SESSION), "number": "4"})])
        spool_path(tmp_path, SESSION + 1).write_bytes(b"not a database" * 1000)
        results, numbers = repair(table, routes, tmp_path, verdict(missing=[Range(31, 32)]))
    assert results["spools"] == Replayed(3, 3)
    assert numbers == {31, 32}
    assert table.rows["prices:feed"] == {(SESSION, 4)}
    assert "spool cannot be read" in caplog.text


def letter(number: int, stream: str, *raw: bytes) -> dead_letters.DeadLetter:
    now = datetime.now(UTC)
    return dead_letters.DeadLetter(number, now, stream, f"{number}-0", SESSION, number, "refused", raw)


def test_repair_tries_dead_letters_again_and_deletes_those_that_are_rows(
    table: Table, routes: dict[str, Route], tmp_path: Path, letters: dict[int, dead_letters.DeadLetter]
) -> None:
    parts = (b"session", b"%d" % SESSION, b"seq")
    letters[1] = letter(1, "prices", *parts, b"7")
    letters[2] = letter(2, "prices", *parts, b"8", b"bad", b"")
    letters[3] = letter(3, "another stream", *parts, b"9")
    results, numbers = repair(table, routes, tmp_path, verdict(dead_letters=3))
    assert results["dead letters"] == Replayed(2, 1)
    assert numbers == {7}
    assert list(letters) == [2, 3]


def test_repair_of_a_sound_session_stores_nothing(
    table: Table, routes: dict[str, Route], tmp_path: Path, letters: dict[int, dead_letters.DeadLetter]
) -> None:
    letters[1] = letter(1, "prices", b"session", b"5", b"seq", b"7")
    results, numbers = repair(table, routes, tmp_path, verdict())
    assert set(results.values()) == {Replayed(0, 0)}
    assert numbers == set()
