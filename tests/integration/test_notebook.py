"""docs/notebooks/first-steps.ipynb runs from the first cell to the last, and its results are right."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
import pytest
from nbclient import NotebookClient

import tickpipe
from tests.support.candles import store_of
from tests.support.pipeline import Database
from tests.support.sessions import StoredSession
from tickpipe import ConfigurationError

NOTEBOOK = Path(__file__).parents[2] / "docs/notebooks/first-steps.ipynb"
SYMBOLS = ["BTC/USD", "ETH/USD"]
GAP = (60 * 60, 80 * 60)  # seconds ago: its end and its beginning


@pytest.fixture
def filled(database: Database) -> Database:
    """Two hours of ticks up to now: the second price rises when the first one does. One gap of 20 minutes."""
    now = time.time()
    with closing(store_of(database)) as store:
        for begin, end in ((7200, GAP[1]), (GAP[0], 0)):
            session = StoredSession(store, now - begin)
            session.emit("started", 0, feed="simulator", symbols=SYMBOLS)
            session.emit("subscribed", 0, symbols=SYMBOLS)
            if end:
                session.emit("disconnected", begin - end, cause="test", last_frame=round((now - end) * 1e6))
            else:
                session.checkpoint("alive", begin, begin // 5)
            database.query(
                "INSERT INTO prices_real_time (time, symbol, price, day_volume, received_at, session, seq) "
                "SELECT t, symbol, factor * (100 + sin(extract(epoch FROM t) / 40)), extract(epoch FROM t), t, %s, "
                "row_number() OVER () FROM generate_series(to_timestamp(%s), to_timestamp(%s), interval '5 s') AS t, "
                "(VALUES ('BTC/USD', 1), ('ETH/USD', 3)) AS s (symbol, factor)",
                session.id, now - begin, now - end - 1,
            )  # fmt: skip
    return database


def test_notebook_runs(filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", filled.url)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the file has no output: it would be a large diff"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = [cell.outputs[-1]["data"] for cell in notebook.cells if cell.cell_type == "code"]
    symbols, candles, gaps, chart, ohlc, correlation = results
    assert symbols["text/plain"] == str(SYMBOLS)
    assert "volume" in candles["text/plain"]
    assert "disconnected: test" in gaps["text/plain"]
    figure = chart["application/vnd.plotly.v1+json"]
    assert [trace["type"] for trace in figure["data"]] == ["candlestick", "bar"]
    assert len(figure["layout"]["shapes"]) == 1
    assert "close" in ohlc["text/plain"]
    assert float(correlation["text/plain"].removeprefix("np.float64(").rstrip(")")) == pytest.approx(1)


def shapes(figure: go.Figure) -> list[tuple[Any, Any]]:
    return [(shape.x0, shape.x1) for shape in figure.layout.shapes]


def test_chart_has_all_candles_and_the_gaps_in_view(filled: Database) -> None:
    with tickpipe.connect(filled.url) as db:
        candles = db.candles("BTC/USD", "5m", since="3h")
        gaps = db.gaps("BTC/USD", since="3h")
        figure = candles.plot(gaps=gaps)
        table = candles.arrow().to_pydict()
        assert list(figure.data[0].close) == table["close"]
        assert list(figure.data[1].y) == table["volume"]
        ((since, until),) = shapes(figure)
        assert (since, until) == tuple(gaps.arrow().select(["since", "until"]).to_pylist()[0].values())
        assert shapes(candles.plot()) == []
        both = db.candles(SYMBOLS, "5m", since="3h").plot(gaps)
        assert [trace.name for trace in both.data] == SYMBOLS
        assert len(db.candles("BTC/USD", "5m", since="2020-01-01", until="2020-01-02").plot(gaps).data) == 0
        with pytest.raises(ConfigurationError, match=r"ticks of BTC/USD.* are not candles.*db\.candles"):
            db.ticks("BTC/USD", since="1m").plot()
