"""Every example of docs/reading.md runs on PostgreSQL and TimescaleDB, with the answers of docs/querying.md."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import tickpipe.client
from tests.integration.test_querying import assert_shown
from tests.support.expected_rows import DAY, begin_of, by_key, equal, ticks
from tests.support.market import NOW
from tests.support.pipeline import ServerPair
from tests.support.querying import Backend, at
from tests.support.reading import ANSWERS, PAGE, SECTIONS, rows_of, sql_of


@pytest.fixture(scope="module", params=["PostgreSQL", "TimescaleDB"])
def backend(request: pytest.FixtureRequest) -> Backend:
    timescaledb = request.param == "TimescaleDB"
    name = "timescale_of_the_module" if timescaledb else "database_of_the_module"
    return Backend(request.getfixturevalue(name), timescaledb)


def test_page_gives_the_answers_of_the_sql(
    backend: Backend,
    servers: ServerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", backend.database.url)
    monkeypatch.setenv("REDIS_URL", servers.valkey.url)
    monkeypatch.setenv("PGTZ", "America/New_York")  # a zone whose clocks change within the rows
    monkeypatch.setattr(tickpipe.client, "connect", partial(tickpipe.client.connect, now=lambda: NOW))
    names: dict[str, Any] = {}
    answered = set()
    for heading, blocks in SECTIONS.items():
        for block in blocks:
            if block.language == "python":
                exec(compile(block.code, str(PAGE), "exec"), names)  # noqa: S102
                assert_shown(block.shown, capsys.readouterr().out)
        if heading in ANSWERS:
            frame, question = ANSWERS[heading]
            wanted = backend.database.query(at(NOW, sql_of(question).code))
            assert_same(frame(names), wanted, question[2])
            answered.add(heading)
    assert answered == set(ANSWERS)
    midnight = begin_of(NOW, DAY)
    expected = sorted(ticks("AAPL", midnight - DAY, midnight), key=by_key)
    assert names["pq"].read_table("ticks.parquet")["price"].to_pylist() == [tick.price for tick in expected]
    names["db"].close()


def assert_same(frame: pl.DataFrame, wanted: list[tuple[Any, ...]], columns: Sequence[str | None]) -> None:
    """Check that frame and rows have the same values in the columns that both have."""
    shared = [
        tuple(
            float(value) if isinstance(value, Decimal) else value
            for value, name in zip(row, columns, strict=True)
            if name
        )
        for row in wanted
    ]
    assert equal(sorted(rows_of(frame, columns)), sorted(shared))
