"""Entries that the database refuses become dead letters and do not block other entries."""

from __future__ import annotations

import pytest

from common.tick import Tick
from tests.support.capture import (
    SESSION,
    make_events,
    ticks,
)
from tests.support.pipeline import Pipeline


def test_bad_entries_do_not_block_good_ones(pipeline: Pipeline) -> None:
    events = make_events(1000)
    entries = [each._asdict() for each in ticks(events, SESSION)]
    entries[100]["price"] = "NaN"
    entries[500]["symbol"] = "x" * 65
    entries[999] = {"what": "is this?"}
    pipeline.prices.append(entries)
    consumer = pipeline.consumer("--drain")
    assert consumer.wait() == 0
    assert pipeline.database.count() == 997
    letters = pipeline.database.query("SELECT seq, reason FROM dead_letters ORDER BY entry_id")
    assert letters == [
        (101, "price is not a finite number: 'NaN'"),
        (501, f"symbol does not have 1 to 64 characters: '{'x' * 65}'"),
        (None, "its fields are not those of a tick: what"),
    ]
    assert pipeline.nothing_pending()


@pytest.mark.parametrize("digits", [19, 400, 5000])  # beyond float; beyond Python's limit for int()
def test_out_of_range_receipt_time_is_a_dead_letter(pipeline: Pipeline, digits: int) -> None:
    good = [*ticks(make_events(20), SESSION)]
    pipeline.append([good[0]._replace(received="9" * digits), *good[1:]])
    pipeline.drain()
    assert pipeline.database.count() == 19
    assert pipeline.database.query("SELECT seq FROM dead_letters") == [(1,)]


def test_row_that_fails_like_an_outage_is_isolated_while_the_database_responds(fresh_pipeline: Pipeline) -> None:
    pipeline = fresh_pipeline
    pipeline.database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'too much for one page' USING ERRCODE = '54000'; END$$"
    )
    pipeline.database.query(
        "CREATE TRIGGER refuse BEFORE INSERT ON prices_real_time FOR EACH ROW "
        "WHEN (NEW.symbol = 'BAD') EXECUTE FUNCTION refuse()"
    )
    good = list(ticks(make_events(200), SESSION))
    bad = Tick(str(SESSION), "201", "BAD", "1760000000", "1", "", "", "", "", str(SESSION + 1000))
    pipeline.append([*good[:77], bad, *good[77:]])
    consumer = pipeline.consumer("--drain")
    assert consumer.wait() == 0
    assert "try 3, next in" in consumer.said()
    pipeline.assert_stored_exactly(make_events(200))
    letters = pipeline.database.query("SELECT seq, reason FROM dead_letters")
    assert [seq for seq, _ in letters] == [201]
    assert letters[0][1].startswith("too much for one page")
