"""Of several producers one is active. The others wait, and give the active one time after an outage of Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import pytest

from common import threads
from common.errors import ConfigurationError, FencedError, OutageError, StreamOutageError
from common.streams.lease import Lease
from common.streams.stream import Fence
from producer import standby as standby_module
from producer.standby import Standby
from tests.support.waiting import PATIENCE, wait_for

FENCE = Fence("twelvedata", 1_000_000)


class OneLease:
    """A lease that a test grants or withdraws. `error` is raised by every call, `fenced` by each renewal."""

    lifetime = 5.0

    def __init__(self) -> None:
        self.is_free = True
        self.error: Exception | None = None
        self.fenced: FencedError | None = None
        self.renewals = self.releases = 0

    def holder(self) -> str | None:
        self._fail()
        return None if self.is_free else "another"

    def acquire(self) -> Fence | None:
        self._fail()
        return FENCE if self.is_free else None

    def renew(self, fence: Fence) -> None:
        assert fence == FENCE
        self.renewals += 1
        self._fail()
        if self.fenced:
            raise self.fenced

    def release(self) -> None:
        self.releases += 1
        self._fail()

    def _fail(self) -> None:
        if self.error:
            raise self.error


class Runs:
    """Stands for the producer: each run lasts until its end is asked for."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.standby: Standby | None = None

    def __call__(self, fence: Fence, ended: threading.Event, standby: Standby) -> None:
        assert fence == FENCE
        self.begun += 1
        self.standby = standby
        assert ended.wait(PATIENCE)
        self.ended += 1

    @property
    def active(self) -> bool:
        return self.begun > self.ended


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby_module, "POLL", 0.001)


@pytest.fixture
def lease() -> OneLease:
    return OneLease()


@pytest.fixture
def runs() -> Runs:
    return Runs()


class Clock:
    """Seconds that pass by command."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Start = Callable[[], Callable[[], None]]


@pytest.fixture
def start(lease: OneLease, runs: Runs, clock: Clock) -> Start:
    """Start a standby. The result stops it, and raises its error."""

    def begin() -> Callable[[], None]:
        stop = threading.Event()
        standby = Standby(cast("Lease", lease), runs, monotonic=clock)
        running = threads.in_thread(standby.run, stop)

        def end() -> None:
            stop.set()
            running.result(timeout=PATIENCE)

        return end

    return begin


def test_active_producer_renews_and_hands_over_at_the_end(start: Start, lease: OneLease, runs: Runs) -> None:
    stop = start()
    wait_for(lambda: runs.active and lease.renewals)
    stop()
    assert (runs.begun, runs.ended, lease.releases) == (1, 1, 1)


def test_renewals_come_several_times_within_the_lifetime(
    start: Start, lease: OneLease, runs: Runs, clock: Clock
) -> None:
    stop = start()
    for expected in range(1, 4):
        wait_for(lambda expected=expected: lease.renewals == expected)  # type: ignore[misc]
        clock.now += lease.lifetime / 2
    stop()
    assert runs.begun == 1


def test_waiting_producer_names_the_active_one_once(
    start: Start, lease: OneLease, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lease.is_free = False
    stop = start()
    wait_for(lambda: "waiting: another is active" in caplog.text)
    assert runs.begun == 0
    lease.is_free = True
    wait_for(lambda: runs.active)
    stop()
    assert caplog.text.count("another is active") == 1


def test_stop_while_waiting_begins_no_run(start: Start, lease: OneLease, runs: Runs) -> None:
    lease.is_free = False
    start()()
    assert (runs.begun, lease.releases) == (0, 0)


def test_fenced_producer_ends_its_run_and_waits_again(
    start: Start, lease: OneLease, runs: Runs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    stop = start()
    wait_for(lambda: runs.active)
    lease.is_free, lease.fenced = False, FencedError(2_000_000)
    clock.now += lease.lifetime
    wait_for(lambda: runs.ended == 1)
    assert fenced_since(runs) == 2_000_000
    assert lease.releases == 0  # another one has it
    lease.is_free, lease.fenced = True, None
    wait_for(lambda: runs.begun == 2)
    assert fenced_since(runs) is None
    stop()
    assert caplog.text.count("fenced: another producer") == 1


def fenced_since(runs: Runs) -> int | None:
    assert runs.standby
    return runs.standby.fenced_since


def test_outage_does_not_end_the_run(start: Start, lease: OneLease, runs: Runs, clock: Clock) -> None:
    stop = start()
    wait_for(lambda: runs.active and lease.renewals)
    lease.error = StreamOutageError("Redis: away")
    clock.now += lease.lifetime * 10
    before = lease.renewals
    wait_for(lambda: lease.renewals > before + 3)
    assert runs.active
    lease.error = None
    stop()
    assert (runs.begun, lease.releases) == (1, 1)


def test_changed_password_does_not_keep_the_producer_from_stopping(
    start: Start, lease: OneLease, runs: Runs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each renewal opens a connection, so it meets the new password first."""
    stop = start()
    wait_for(lambda: runs.active and lease.renewals)
    lease.error = ConfigurationError("Redis refuses the login")
    clock.now += lease.lifetime
    before = lease.renewals
    wait_for(lambda: lease.renewals > before + 3)
    assert runs.active
    stop()
    assert (runs.begun, runs.ended) == (1, 1)
    assert caplog.text.count("lease not renewed: Redis refuses the login") == 1
    assert "the lease ends by itself: Redis refuses the login" in caplog.text


def test_unexpected_error_of_a_renewal_ends_the_run(lease: OneLease, runs: Runs) -> None:
    """A run that does not learn of SIGTERM would never end."""

    def fail(fence: Fence) -> None:  # noqa: ARG001
        raise ValueError("the fence is no number")

    lease.renew = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no number"):
        Standby(cast("Lease", lease), runs).run(threading.Event())
    assert (runs.ended, lease.releases) == (1, 1)


def test_after_an_outage_the_active_producer_is_given_time(
    start: Start, lease: OneLease, runs: Runs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lease may have ended during the outage, and only its own run may append the prices that it has."""
    lease.error = StreamOutageError("Redis: away")
    asked = threading.Semaphore(0)
    holder = lease.holder

    def ask() -> str | None:
        asked.release()
        return holder()

    lease.holder = ask  # type: ignore[method-assign]
    stop = start()
    wait_for(lambda: "Redis: away; waiting" in caplog.text)
    lease.error = None
    for _ in range(20):
        assert asked.acquire(timeout=PATIENCE)
    assert runs.begun == 0
    clock.now += lease.lifetime
    wait_for(lambda: runs.active)
    stop()


def test_lease_that_cannot_be_released_ends_by_itself(
    start: Start, lease: OneLease, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    stop = start()
    wait_for(lambda: runs.active)
    lease.error = StreamOutageError("Redis: away")
    stop()
    assert "the lease ends by itself: Redis: away" in caplog.text


def test_error_of_the_producer_ends_the_process_and_hands_over(lease: OneLease) -> None:
    def fail(*_: object) -> None:
        raise OutageError("the disk is full")

    with pytest.raises(OutageError, match="the disk is full"):
        Standby(cast("Lease", lease), fail).run(threading.Event())
    assert lease.releases == 1
