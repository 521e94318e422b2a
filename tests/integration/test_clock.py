"""A producer clock that jumps ahead and back: stored rows, `verify` and recorded gaps."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from threading import Event

from common import clock, threads
from common.database.client import DatabaseClient
from common.settings import Secret
from producer.config import FeedConfig
from producer.feed import Feed
from producer.feeds.twelvedata import TwelveData
from producer.publisher import Publisher
from producer.queue import EventQueue
from producer.spool import Spool
from producer.streams import Streams
from tests.support.faults import FaultySimulator
from tests.support.pipeline import Pipeline
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.inspect.verify import verify
from tickpipe.simulator.config import SimulatorConfig

#: Microseconds.
HOUR = 3600 * 1_000_000
DAY = 24 * HOUR


class Clock:
    """The current time in microseconds plus an adjustable offset."""

    offset = 0

    def __call__(self) -> int:
        return clock.microseconds() + self.offset


def test_clock_jumps_lose_no_price_and_hide_no_gap(pipeline: Pipeline, tmp_path: Path) -> None:
    clock, stop, intake = Clock(), Event(), EventQueue(10**6)
    # In the last hour of a day the jump would cross midnight, which starts a new session.
    start = -HOUR if clock() % DAY >= DAY - HOUR else 0
    clock.offset = start
    with FaultySimulator(SimulatorConfig(rate=100, seed=1)) as simulator:
        feed = Feed(
            FeedConfig(url=simulator.url),
            api_key=lambda: Secret("key-of-the-test"),
            symbols=["AAPL"],
            queues=[intake],
            clock=clock,
            rng=random.Random(1),
        )
        spool = Spool(tmp_path / "1.spool", max_bytes=1 << 20)
        publishing = threads.in_thread(
            Publisher(intake, Streams(pipeline.prices, pipeline.feed), spool, TwelveData()).run
        )
        receiving = threads.in_thread(feed.run, stop)

        def wait_for_more() -> None:
            received = feed.received
            wait_for(lambda: feed.received > received + 10)

        wait_for_more()
        clock.offset = start + HOUR
        wait_for_more()
        clock.offset = start
        wait_for_more()
        simulator.close_all(1012)  # within the hour by which the clock was ahead: this gap must be visible
        wait_for(lambda: feed.connections == 2)
        wait_for_more()
        stop.set()
        receiving.result(PATIENCE)
        intake.close()
        publishing.result(PATIENCE)
        spool.close()
    pipeline.drain()

    rows = pipeline.database.query("SELECT session, seq, received_at FROM prices_real_time ORDER BY received_at")
    assert len(rows) == feed.received
    assert len({session for session, *_ in rows}) == 2
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        verdicts = verify(store, [pipeline.prices], [pipeline.feed], tmp_path, recheck_after=0.01)
    assert [(verdict.state, verdict.missing, verdict.missing_events) for verdict in verdicts] == [
        ("complete", [], [])
    ] * 2
    assert sum(verdict.expected for verdict in verdicts) == feed.received
    gaps = pipeline.database.query("SELECT cause, until - since < interval '1 minute' FROM feed_gaps ORDER BY since")
    assert gaps == [
        ("disconnected: the server closed the connection (code 1012)", True),
        ("stopped", None),
    ]
