"""`tickpipe verify` reports missing and duplicate ticks, and no tick that is in transit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common import tick
from common.database.client import DatabaseClient
from common.settings import Secret
from producer.spool import Outgoing, Spool
from tests.support.pipeline import Pipeline
from tests.support.sessions import StoredSession
from tickpipe.inspect.verdict import Verdict
from tickpipe.inspect.verify import verify
from tickpipe.ranges import Range

N = 100


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(pipeline.database.url))) as store:
        pipeline.prices.ensure_group()
        yield store


@pytest.fixture
def run(pipeline: Pipeline, store: DatabaseClient, tmp_path: Path) -> Callable[..., list[Verdict]]:
    def run(**options: object) -> list[Verdict]:
        return verify(store, [pipeline.prices], [pipeline.feed], tmp_path, **{"recheck_after": 0.01, **options})  # type: ignore[arg-type]

    return run


def ended(store: DatabaseClient, *, ago: float = 1000.0, last_seq: int = N) -> StoredSession:
    session = StoredSession(store, time.time() - ago)
    session.emit("started", 0, feed="twelvedata")
    session.checkpoint("stopped", 1, last_seq)
    return session


def test_complete_session_is_verified_and_not_scanned_again(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    ended(store).store(range(1, N + 1))
    (verdict,) = run()
    assert (verdict.state, verdict.stored, verdict.expected, verdict.sound) == ("complete", N, N, True)
    assert run() == []
    assert [verdict.state for verdict in run(everything=True)] == ["complete"]


def test_dropped_ticks_are_expired_and_missing_ones_still_missing(
    pipeline: Pipeline, store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    old, new = ended(store, ago=10 * 86_400), ended(store)
    old.store(seq for seq in range(1, N + 1) if seq != 7)
    new.store(range(1, N + 1))
    pipeline.database.query("CALL expire_ticks(now() - interval '3 days')")
    assert pipeline.database.count() == N
    first, second = run()
    assert (first.state, first.stored, first.expired, first.missing) == ("incomplete", 0, N - 1, [Range(7, 7)])
    assert (second.state, second.stored, second.expired) == ("complete", N, 0)
    old.store([7])  # it arrives late and is dropped by the next run
    assert [verdict.state for verdict in run()] == ["complete"]
    pipeline.database.query("CALL expire_ticks(now() - interval '3 days')")
    first, second = run(everything=True)
    assert (first.state, first.stored, first.expired) == ("complete", 0, N)
    assert f"0 of {N} stored + {N} expired" in str(first)


@pytest.mark.parametrize(
    ("deleted", "missing"),
    [
        ([1], ["1"]),
        ([50], ["50"]),
        ([N], [str(N)]),
        ([1, 49, 50, 51, N], ["1", "49–51", str(N)]),
        (range(1, N + 1), [f"1–{N}"]),
    ],
    ids=["the first", "a middle one", "the last", "several", "the whole session"],
)
def test_manually_deleted_ticks_are_reported(
    deleted: list[int], missing: list[str], store: DatabaseClient, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    ended(store).store(range(1, N + 1))
    pipeline.database.query("DELETE FROM prices_real_time WHERE seq = ANY(%s)", list(deleted))
    (verdict,) = run()
    assert verdict.state == "incomplete"
    assert [str(part) for part in verdict.missing] == missing
    assert all(f"MISSING {part}" in str(verdict) for part in missing)
    assert run() != [], "an incomplete session is never marked as verified"


def test_missing_price_is_reported_with_its_time(store: DatabaseClient, run: Callable[..., list[Verdict]]) -> None:
    session = ended(store)
    session.store(set(range(1, N + 1)) - {50})
    ((since, until),) = run()[0].spans
    assert since is not None
    assert until is not None
    assert since.timestamp() == pytest.approx(session.start + 0.049, abs=1e-4)
    assert until.timestamp() == pytest.approx(session.start + 0.051, abs=1e-4)


def test_duplicate_number_is_found(store: DatabaseClient, run: Callable[..., list[Verdict]]) -> None:
    session = ended(store)
    session.store(range(1, N + 1))
    session.store([7], symbol="ETH/USD")
    (verdict,) = run()
    assert verdict.doubled == [Range(7, 7)]
    assert verdict.state == "incomplete"


def test_lost_tail_is_found_by_the_last_seq_of_the_producer(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    session = StoredSession(store, time.time() - 5)
    session.emit("started", 0)
    session.checkpoint("alive", 4, N)
    session.store(range(1, N - 1))
    (verdict,) = run()
    assert [str(part) for part in verdict.missing] == [f"{N - 1}–{N}"]


def test_live_session_is_complete_so_far_and_never_verified(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    session = StoredSession(store, time.time() - 5)
    session.checkpoint("alive", 4, 10)
    session.store([*range(1, 11), 12])  # 11 is in transit: no checkpoint covers it
    for _ in range(2):
        (verdict,) = run()
        assert (verdict.state, verdict.expected) == ("complete so far", 10)


def test_session_without_a_stop_event_is_checked_up_to_its_highest_seq(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    session = StoredSession(store, time.time() - 100)
    session.checkpoint("alive", 4, 10)
    session.store(range(1, 16))
    (verdict,) = run()
    assert (verdict.state, verdict.expected) == ("ended without a final report", 15)
    session.store([17])
    (verdict,) = run()
    assert [str(part) for part in verdict.missing] == ["16"]


def test_dead_letters_and_recorded_overflows_are_accounted_for(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.emit("overflow", 1, first_seq=60, last_seq=69, since=0, until=1, cause="intake full")
    session.store(set(range(1, N + 1)) - {5} - set(range(60, 70)))
    session.store([5], price="no number")
    (verdict,) = run()
    assert (verdict.state, verdict.dead_letters, verdict.lost) == ("complete", 1, 10)
    assert verdict.stored == N - 11


def test_unread_pending_and_spooled_ticks_are_in_transit(
    store: DatabaseClient, pipeline: Pipeline, run: Callable[..., list[Verdict]], tmp_path: Path
) -> None:
    session = ended(store)
    session.store(range(1, N - 2))
    pipeline.append([session.tick(N - 2), session.tick(N - 1)])
    assert len(pipeline.prices.read(1)) == 1  # one pending, one unread
    with closing(Spool(tmp_path / "1.spool", max_bytes=10**6)) as spool:
        spool.put([Outgoing("prices", tick.encode(session.tick(N)))])
        (verdict,) = run()
    assert (verdict.state, verdict.waiting, verdict.sound) == ("complete so far", 3, True)


def test_acked_tick_absent_from_the_table_is_missing(
    store: DatabaseClient, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.store(range(1, N))
    pipeline.append([session.tick(N)])
    pipeline.prices.ack([entry.id for entry in pipeline.prices.read(10)])
    assert [str(part) for part in run()[0].missing] == [str(N)]


def test_tick_moving_between_two_reads_is_not_reported_missing(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.store(range(1, N))
    (verdict,) = run(sleep=lambda _: session.store([N]))
    assert (verdict.state, verdict.stored) == ("complete", N)


def test_verified_session_is_scanned_again_after_an_adopted_spool(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.store(range(1, N + 1))
    run()
    session.checkpoint("stopped", 2, N + 1)
    assert [str(part) for part in run()[0].missing] == [str(N + 1)]


def test_prices_of_any_exchange_time_are_counted(store: DatabaseClient, run: Callable[..., list[Verdict]]) -> None:
    """A capture of 2013 replayed today: the producer's report gives the time range of the scan."""
    session = StoredSession(store, time.time() - 100)
    session.store(range(1, 11), time="1357077600")
    session.emit("stopped", 1, last_seq=10, time_min=1357077600, time_max=1357077600)
    assert run()[0].state == "complete"


def test_missing_feed_event_is_reported(
    store: DatabaseClient, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    session = StoredSession(store, time.time() - 100)
    session.emit("started", 0)
    session.emit("disconnected", 1, cause="reset", last_frame=0)
    session.checkpoint("stopped", 2, 0)
    pipeline.database.query("DELETE FROM feed_events WHERE event = 'disconnected'")
    (verdict,) = run()
    assert (verdict.state, verdict.missing_events) == ("incomplete", [Range(2, 2)])
    assert "FEED EVENT 2 is missing" in str(verdict)


def test_feed_event_in_transit_is_not_reported_missing(
    store: DatabaseClient, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    session = StoredSession(store, time.time() - 100)
    session.emit("started", 0)
    session.skip("connected", 1, to=pipeline.feed)
    session.checkpoint("stopped", 2, 0)
    (verdict,) = run()
    assert (verdict.state, verdict.waiting, verdict.sound) == ("complete so far", 1, True)


def test_first_quote_of_a_killed_session_may_be_days_old(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    session = StoredSession(store, time.time() - 100)
    session.emit("alive", 1, last_seq=0)
    session.store([1, 2], time=str(int(session.start) - 2 * 86_400))
    session.store([3])
    (verdict,) = run()
    assert (verdict.state, verdict.expected, verdict.stored) == ("ended without a final report", 3, 3)


def test_unreadable_spool_and_missing_stream_do_not_crash_verify(
    store: DatabaseClient,
    pipeline: Pipeline,
    run: Callable[..., list[Verdict]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended(store).store(range(1, N))
    (tmp_path / "1.spool").write_bytes(b"no database" * 100)
    pipeline.redis.delete("prices", "prices:feed")
    assert [str(part) for part in run()[0].missing] == [str(N)]
    assert "spool cannot be read" in caplog.text


def test_command_exits_1_and_lists_missing_ticks(store: DatabaseClient, pipeline: Pipeline) -> None:
    session = ended(store)
    session.store(range(1, N + 1))
    good = pipeline.processes.start("tickpipe", "verify", "--claim-idle", "0.1")
    assert good.wait() == 0
    assert f"complete, {N} of {N} stored" in good.said()
    pipeline.database.query("DELETE FROM prices_real_time WHERE seq = 33")
    bad = pipeline.processes.start("tickpipe", "verify", "--all", "--claim-idle", "0.1")
    assert bad.wait() == 1
    assert "MISSING 33 (1)" in bad.said()
    listed = pipeline.processes.start("tickpipe", "verify", "--all", "--json", "--claim-idle", "0.1")
    assert listed.wait() == 1
    (verdict,) = json.loads(listed.said())
    assert (verdict["session"], verdict["missing"], verdict["sound"]) == (session.id, [[33, 33]], False)


def test_price_of_a_killed_producer_with_a_time_years_off_is_not_missing(
    store: DatabaseClient, run: Callable[..., list[Verdict]]
) -> None:
    killed = StoredSession(store, time.time() - 1000)
    killed.emit("started", 0, feed="twelvedata")
    killed.checkpoint("alive", 1, N)
    killed.store(range(1, N + 1))
    for seq, wrong in ((N + 1, "4102444700"), (N + 2, "0")):  # after its last report
        killed.store([seq], time=wrong)
    killed.store([N + 3])
    (verdict,) = run()
    assert (verdict.state, verdict.stored, verdict.missing) == ("ended without a final report", N + 3, [])
    killed.store([N + 5])
    (verdict,) = run(everything=True)
    assert (verdict.state, verdict.missing) == ("incomplete", [Range(N + 4, N + 4)])
