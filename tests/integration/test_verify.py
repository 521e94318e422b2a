"""`tickpipe verify`: finds what is missing or stored twice, without false alarms for entries that still wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common import tick
from common.settings import Secret
from consumer.store import PriceStore
from producer.spool import Outgoing, Spool
from tests.support.pipeline import Pipeline
from tests.support.told import Told
from tickpipe.inspect.verdict import Verdict
from tickpipe.inspect.verify import verify
from tickpipe.ranges import Range

N = 100


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[PriceStore]:
    with closing(PriceStore(Secret(pipeline.database.url))) as store:
        pipeline.prices.ensure_group()
        yield store


@pytest.fixture
def run(pipeline: Pipeline, store: PriceStore, tmp_path: Path) -> Callable[..., list[Verdict]]:
    def run(**options: object) -> list[Verdict]:
        return verify(store, pipeline.prices, pipeline.feed, tmp_path, **{"recheck_after": 0.01, **options})  # type: ignore[arg-type]

    return run


def ended(store: PriceStore, *, ago: float = 1000.0, last_seq: int = N) -> Told:
    session = Told(store, time.time() - ago)
    session.tell("started", 0, feed="twelvedata")
    session.vouch("stopped", 1, last_seq)
    return session


def test_a_complete_session_is_marked_as_verified_and_not_scanned_again(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    ended(store).store(range(1, N + 1))
    (verdict,) = run()
    assert (verdict.state, verdict.stored, verdict.expected, verdict.sound) == ("complete", N, N, True)
    assert run() == []
    assert [verdict.state for verdict in run(everything=True)] == ["complete"]


def test_ticks_dropped_by_retention_are_expired_and_holes_stay_missing(
    pipeline: Pipeline, store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    old, new = ended(store, ago=10 * 86_400), ended(store)
    old.store(seq for seq in range(1, N + 1) if seq != 7)
    new.store(range(1, N + 1))
    pipeline.database.query("CALL expire_ticks(now() - interval '3 days')")
    assert pipeline.database.count() == N
    first, second = run()
    assert (first.state, first.stored, first.expired, first.missing) == ("incomplete", 0, N - 1, [Range(7, 7)])
    assert (second.state, second.stored, second.expired) == ("complete", N, 0)
    old.store([7])  # it arrives late, and is dropped the next time
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
def test_deleted_prices_are_found_and_named(
    deleted: list[int], missing: list[str], store: PriceStore, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    ended(store).store(range(1, N + 1))
    pipeline.database.query("DELETE FROM prices_real_time WHERE seq = ANY(%s)", list(deleted))
    (verdict,) = run()
    assert verdict.state == "incomplete"
    assert [str(part) for part in verdict.missing] == missing
    assert all(f"MISSING {part}" in str(verdict) for part in missing)
    assert run() != [], "an incomplete session is never marked as verified"


def test_a_missing_price_is_named_with_its_time(store: PriceStore, run: Callable[..., list[Verdict]]) -> None:
    session = ended(store)
    session.store(set(range(1, N + 1)) - {50})
    ((since, until),) = run()[0].spans
    assert since is not None
    assert until is not None
    assert since.timestamp() == pytest.approx(session.start + 0.049, abs=1e-4)
    assert until.timestamp() == pytest.approx(session.start + 0.051, abs=1e-4)


def test_a_number_stored_twice_is_found(store: PriceStore, run: Callable[..., list[Verdict]]) -> None:
    session = ended(store)
    session.store(range(1, N + 1))
    session.store([7], symbol="ETH/USD")
    (verdict,) = run()
    assert verdict.doubled == [Range(7, 7)]
    assert verdict.state == "incomplete"


def test_a_lost_tail_is_found_by_the_producers_last_number(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    session = Told(store, time.time() - 5)
    session.tell("started", 0)
    session.vouch("alive", 4, N)
    session.store(range(1, N - 1))
    (verdict,) = run()
    assert [str(part) for part in verdict.missing] == [f"{N - 1}–{N}"]


def test_a_running_session_is_complete_so_far_and_never_marked_as_verified(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    session = Told(store, time.time() - 5)
    session.vouch("alive", 4, 10)
    session.store([*range(1, 11), 12])  # 11 is in flight: the producer has not reported it yet
    for _ in range(2):
        (verdict,) = run()
        assert (verdict.state, verdict.expected) == ("complete so far", 10)


def test_a_session_without_a_final_report_is_verified_up_to_its_highest_number(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    session = Told(store, time.time() - 100)
    session.vouch("alive", 4, 10)
    session.store(range(1, 16))
    (verdict,) = run()
    assert (verdict.state, verdict.expected) == ("ended without a final report", 15)
    session.store([17])
    (verdict,) = run()
    assert [str(part) for part in verdict.missing] == ["16"]


def test_dead_letters_and_recorded_overflows_are_accounted_for(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.tell("overflow", 1, first_seq=60, last_seq=69, since=0, until=1, cause="intake full")
    session.store(set(range(1, N + 1)) - {5} - set(range(60, 70)))
    session.store([5], price="no number")
    (verdict,) = run()
    assert (verdict.state, verdict.dead_letters, verdict.lost) == ("complete", 1, 10)
    assert verdict.stored == N - 11


def test_unread_pending_and_spooled_prices_are_waiting(
    store: PriceStore, pipeline: Pipeline, run: Callable[..., list[Verdict]], tmp_path: Path
) -> None:
    session = ended(store)
    session.store(range(1, N - 2))
    pipeline.append([session.tick(N - 2), session.tick(N - 1)])
    assert len(pipeline.prices.read(1)) == 1  # one pending, one unread
    with closing(Spool(tmp_path / "1.spool", max_bytes=10**6)) as spool:
        spool.put([Outgoing("prices", tick.encode(session.tick(N)))])
        (verdict,) = run()
    assert (verdict.state, verdict.waiting, verdict.sound) == ("complete so far", 3, True)


def test_an_acked_entry_that_is_not_in_the_table_is_missing(
    store: PriceStore, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.store(range(1, N))
    pipeline.append([session.tick(N)])
    pipeline.prices.ack([entry.id for entry in pipeline.prices.read(10)])
    assert [str(part) for part in run()[0].missing] == [str(N)]


def test_an_entry_stored_during_the_search_is_not_a_false_alarm(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.store(range(1, N))
    (verdict,) = run(sleep=lambda _: session.store([N]))
    assert (verdict.state, verdict.stored) == ("complete", N)


def test_a_verified_session_is_scanned_again_if_an_adopted_spool_adds_to_it(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    session = ended(store)
    session.store(range(1, N + 1))
    run()
    session.vouch("stopped", 2, N + 1)
    assert [str(part) for part in run()[0].missing] == [str(N + 1)]


def test_prices_of_any_exchange_time_are_counted(store: PriceStore, run: Callable[..., list[Verdict]]) -> None:
    """A capture of 2013 is replayed today: the times that the producer reported bound the scan."""
    session = Told(store, time.time() - 100)
    session.store(range(1, 11), time="1357077600")
    session.tell("stopped", 1, last_seq=10, time_min=1357077600, time_max=1357077600)
    assert run()[0].state == "complete"


def test_a_missing_feed_event_is_named_since_it_may_have_recorded_a_gap(
    store: PriceStore, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    session = Told(store, time.time() - 100)
    session.tell("started", 0)
    session.tell("disconnected", 1, cause="reset", last_frame=0)
    session.vouch("stopped", 2, 0)
    pipeline.database.query("DELETE FROM feed_events WHERE event = 'disconnected'")
    (verdict,) = run()
    assert (verdict.state, verdict.missing_events) == ("incomplete", [Range(2, 2)])
    assert "FEED EVENT 2 is missing" in str(verdict)


def test_a_waiting_feed_event_is_not_a_false_alarm(
    store: PriceStore, pipeline: Pipeline, run: Callable[..., list[Verdict]]
) -> None:
    session = Told(store, time.time() - 100)
    session.tell("started", 0)
    session.skip("connected", 1, to=pipeline.feed)
    session.vouch("stopped", 2, 0)
    (verdict,) = run()
    assert (verdict.state, verdict.waiting, verdict.sound) == ("complete so far", 1, True)


def test_the_first_quote_of_a_killed_session_may_be_of_last_friday(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    session = Told(store, time.time() - 100)
    session.tell("alive", 1, last_seq=0)
    session.store([1, 2], time=str(int(session.start) - 2 * 86_400))
    session.store([3])
    (verdict,) = run()
    assert (verdict.state, verdict.expected, verdict.stored) == ("ended without a final report", 3, 3)


def test_an_unreadable_spool_and_a_missing_stream_do_not_stop_verify(
    store: PriceStore,
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


def test_the_command_exits_1_and_names_what_is_missing(store: PriceStore, pipeline: Pipeline) -> None:
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


def test_a_price_of_a_killed_producer_with_a_wrong_year_is_not_missing(
    store: PriceStore, run: Callable[..., list[Verdict]]
) -> None:
    killed = Told(store, time.time() - 1000)
    killed.tell("started", 0, feed="twelvedata")
    killed.vouch("alive", 1, N)
    killed.store(range(1, N + 1))
    for seq, wrong in ((N + 1, "4102444700"), (N + 2, "0")):  # after its last report
        killed.store([seq], time=wrong)
    killed.store([N + 3])
    (verdict,) = run()
    assert (verdict.state, verdict.stored, verdict.missing) == ("ended without a final report", N + 3, [])
    killed.store([N + 5])
    (verdict,) = run(everything=True)
    assert (verdict.state, verdict.missing) == ("incomplete", [Range(N + 4, N + 4)])
