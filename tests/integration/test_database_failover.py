"""The power of the primary database is cut, and its standby is promoted."""

from __future__ import annotations

import json
import time
from contextlib import closing

import pytest

from common import tick
from common.database.client import DatabaseClient
from common.settings import Secret
from producer.spool import Outgoing, Spool
from producer.spool_folder import spool_path
from tests.support.pipeline import Database, Pipeline
from tests.support.sessions import StoredSession
from tests.support.standby import DatabasePair, database_pair, set_synchronous
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

#: Seconds on the link to the standby.
DELAY = 0.2
RATE = 500


@pytest.mark.parametrize(
    ("synchronous", "kept"),
    [(True, False), (False, True), (False, False)],
    ids=["synchronous", "asynchronous", "asynchronous, nothing kept in the stream"],
)
def test_failover_loses_nothing_that_is_on_the_standby_or_in_the_stream(
    pipeline: Pipeline, synchronous: bool, kept: bool
) -> None:
    """The last case loses rows: so the power cut is a fault that the others survive."""
    with database_pair(DELAY) as pair:
        if synchronous:
            pair.wait_for_standby()
        consumer = pipeline.consumer(DATABASE_URL=pair.url)
        with Simulator(SimulatorConfig(rate=RATE)) as simulator:
            producer = pipeline.producer(simulator.url)
            with closing(Database(pair.primary.url)) as database:
                wait_for(lambda: database.count() >= RATE, message="prices are stored")
            pair.cut_power()
            if not kept:
                pipeline.prices.trim()
            pair.promote()
            with closing(Database(pair.standby.url)) as database:
                before = database.count()
                wait_for(lambda: database.count() >= before + RATE, message="prices are stored again")
                assert producer.stop() == 0
                assert consumer.stop() == 0
                drain = pipeline.consumer("--drain", "--claim-idle", "0.5", DATABASE_URL=pair.url)
                assert drain.wait() == 0
                ((rows, last),) = database.query(
                    "SELECT count(*), (SELECT (detail ->> 'last_seq')::int FROM feed_events WHERE event = 'stopped') "
                    "FROM prices_real_time"
                )
        verify = pipeline.processes.start("tickpipe", "verify", "--claim-idle", "0", DATABASE_URL=pair.url)
        if synchronous or kept:
            assert (rows, verify.wait()) == (last, 0)
            assert "replayed: " in consumer.said() + drain.said()  # the first one may have ended before its replay
        else:
            assert rows < last
            assert verify.wait() == 1


def test_prices_are_stored_again_after_restore_truncate_and_reset(pipeline: Pipeline) -> None:
    """By `tickpipe replay` and by `verify --repair`: everything, and exactly what is missing."""
    with Simulator(SimulatorConfig(rate=RATE)) as simulator:
        consumer, producer = pipeline.consumer(), pipeline.producer(simulator.url)
        pipeline.wait_until_stored(RATE)
        assert producer.stop() == 0
        wait_for(pipeline.last_seqs, message="the last report is stored")
        assert consumer.stop() == 0
    (last,) = pipeline.last_seqs()
    run = pipeline.processes.start

    pipeline.database.query("TRUNCATE prices_real_time, feed_events")
    replay = run("tickpipe", "replay")
    assert replay.wait() == 0
    assert f"prices: {last} entries in the stream, new rows: {last:,}" in replay.said()
    assert pipeline.database.count() == last

    pipeline.database.query("DELETE FROM prices_real_time WHERE seq BETWEEN 100 AND 149")
    pipeline.database.query("DELETE FROM feed_events WHERE number = 2")
    assert run("tickpipe", "verify", "--claim-idle", "0").wait() == 1
    repair = run("tickpipe", "verify", "--repair", "--claim-idle", "0")
    assert repair.wait() == 0
    assert "repaired from the streams: 50 rows" in repair.said()
    assert pipeline.last_seqs() == [pipeline.database.count()] == [last]


def test_repair_stores_what_is_in_spools_and_dead_letters(pipeline: Pipeline) -> None:
    """A spool whose producer never returns, and a dead letter that the database accepts by now."""
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        session = StoredSession(store, time.time() - 60)
        session.emit("started", 0, feed="twelvedata", symbols=["BTC/USD"])
        session.store([1, 2])
        with closing(Spool(spool_path(pipeline.spool_folder(), session.id), max_bytes=10**6)) as spool:
            spool.put([Outgoing("prices", tick.encode(session.tick(3)))])
        pipeline.database.query("ALTER TABLE prices_real_time ADD CONSTRAINT cheap CHECK (price < 100)")
        session.store([4], price="100")
        pipeline.database.query("ALTER TABLE prices_real_time DROP CONSTRAINT cheap")
        session.checkpoint("stopped", 1, last_seq=4)
    assert pipeline.database.count("dead_letters") == 1
    verify = ("tickpipe", "verify", "--claim-idle", "0", "--spool-dir", str(pipeline.folder / "spool"))
    repair = pipeline.processes.start(*verify, "--repair")
    assert repair.wait() == 0
    assert "repaired from the spools: 1 row\n" in repair.said()
    assert "repaired from the dead letters: 1 row\n" in repair.said()
    assert (pipeline.database.count(), pipeline.database.count("dead_letters")) == (4, 0)


def test_doctor_finds_standbys_that_would_lose_or_stop_commits(pipeline: Pipeline) -> None:
    """A new primary that waits for a standby itself stores nothing until its setting is cleared."""
    with database_pair() as pair:
        no_standby = "no synchronous standby"
        waits = "would wait for the standby 'elsewhere' after its promotion"
        assert {no_standby: "note", waits: None} == findings(pipeline, pair, no_standby, waits)
        pair.wait_for_standby()
        set_synchronous(pair.standby, "elsewhere")
        assert {no_standby: None, waits: "BAD"} == findings(pipeline, pair, no_standby, waits)


def findings(pipeline: Pipeline, pair: DatabasePair, *words: str) -> dict[str, str | None]:
    """The state of the finding of `doctor` that contains each text; None without one."""
    doctor = pipeline.processes.start("tickpipe", "doctor", "--json", DATABASE_URL=pair.url)
    doctor.wait()
    found = json.loads(doctor.said())
    return {word: next((each["state"] for each in found if word in each["what"]), None) for word in words}
