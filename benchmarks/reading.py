"""Database → pandas: compares the Python client with `pandas.read_sql` over psycopg2, for the same ticks.

Each side opens its connection, reads all ticks of one symbol, and must return the same frame.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pandas as pd
import psycopg2

import tickpipe
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample
from benchmarks.servers import DATABASE, Bench
from tickpipe.client.database import Database  # noqa: F401  imported before the first round, as pandas is
from tickpipe.client.queries import TICKS

PART = "reading"
TICKPIPE, READ_SQL = "tickpipe.connect(), pandas", "pandas.read_sql + psycopg2"
RATIOS = [Ratio(PART, metric, TICKPIPE, READ_SQL) for metric in ("rate", "cpu")]
SYMBOL, SINCE, UNTIL = "BTC/USD", "2026-05-01", "2026-06-01"
_DATABASE = f"{DATABASE}_reading"
_FILL = """
INSERT INTO prices_real_time (time, symbol, price, day_volume, bid, ask, exchange, received_at, session, seq)
SELECT at, %s, 100 + n %% 997 / 100.0, n, 99.99 + n %% 997 / 100.0, 100.01 + n %% 997 / 100.0, 'NASDAQ',
       at + interval '80 milliseconds', 1777593600000000, n
FROM (SELECT n, timestamptz '2026-05-01 00:00:00+00' + n * interval '0.5 seconds' AS at
      FROM generate_series(1, %s) AS n) AS numbered
"""

Read = Callable[[str], pd.DataFrame]


def part(bench: Bench, scale: Scale) -> Part:
    """Both ways, in turn."""
    frames: dict[str, pd.DataFrame] = {}

    def measure(name: str, read: Read, _round: int) -> Sample:
        frames.pop(name, None)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        frame = read(bench.database_url(_DATABASE))
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
        frames[name] = frame
        if len(frames) == len(_WAYS):
            pd.testing.assert_frame_equal(frames[TICKPIPE], frames[READ_SQL].astype(frames[TICKPIPE].dtypes))
        return {"rate": len(frame) / seconds, "cpu": cpu / len(frame) * 1e6}

    cases = [Case(name, scale.reads / 300_000, partial(measure, name, read)) for name, read in _WAYS.items()]
    return Part(PART, scale.reading_rounds, [Preparation("the ticks", 8, partial(_fill, bench, scale.reads))], cases)


def _fill(bench: Bench, rows: int) -> None:
    bench.create_database(_DATABASE)
    bench.query(_DATABASE, _FILL, SYMBOL, rows)
    bench.query(_DATABASE, "VACUUM ANALYZE prices_real_time")


def _with_tickpipe(url: str) -> pd.DataFrame:
    with tickpipe.connect(url, environ={}) as db:
        return db.ticks(SYMBOL, SINCE, UNTIL).pandas()


def _with_read_sql(url: str) -> pd.DataFrame:
    with closing(psycopg2.connect(url)) as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pandas recommends SQLAlchemy, which is slower
        return pd.read_sql(TICKS, connection, params={"symbol": SYMBOL, "since": SINCE, "until": UNTIL})


_WAYS: dict[str, Read] = {TICKPIPE: _with_tickpipe, READ_SQL: _with_read_sql}
