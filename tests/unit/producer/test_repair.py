"""Missing prices are requested some time after each change of the feed, by a process that ends with the producer."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from common import threads
from common.errors import ConfigurationError
from producer import repair
from producer.feeds import VENDORS
from producer.repair import DELAYS, Repair
from tests.support.waiting import PATIENCE, wait_for

DATABASE = {"DATABASE_URL": "postgresql://localhost/tickpipe"}


def test_command_is_due_at_fixed_times_after_the_last_change() -> None:
    now, state = [1000.0], [1]
    each = Repair(VENDORS["coinbase"], lambda: state[0], monotonic=lambda: now[0])

    def due_after(seconds: float) -> bool:
        now[0] = begin + seconds
        return each.is_due()

    begin = now[0]
    assert not each.is_due()
    first, second, third = DELAYS
    assert [due_after(at) for at in (first - 1, first, second - 1, second)] == [False, True, False, True]
    state[0], begin = 2, now[0]
    assert [due_after(at) for at in (0, first - 1, first, second, third - 1, third, third * 9)] == [
        False, False, True, True, False, True, False
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "level"), [(0, logging.INFO), (1, logging.WARNING)], ids=["success", "failure"])
def test_output_of_the_command_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, level: int
) -> None:
    monkeypatch.setattr(repair, "DELAYS", (0.0,))
    caplog.set_level(logging.INFO)
    stop = threading.Event()
    code = f"print('stored 5 trades of 1 symbol'); raise SystemExit({status})"
    each = Repair(VENDORS["kraken"], lambda: 1, command=[sys.executable, "-c", code])
    running = threads.in_thread(each.run, stop)
    wait_for(lambda: "repair: stored 5 trades of 1 symbol" in caplog.text)
    stop.set()
    running.result(PATIENCE)
    assert [record.levelno for record in caplog.records if "stored" in record.message] == [level]


def test_command_ends_with_the_producer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(repair, "DELAYS", (0.0,))
    monkeypatch.setattr(repair, "POLL_EVERY", 0.01)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    stop, started = threading.Event(), threading.Event()

    def changes() -> int:
        started.set()
        return 1

    running = threads.in_thread(Repair(VENDORS["binance"], changes, command=command).run, stop)
    assert started.wait(PATIENCE)
    stop.set()
    running.result(PATIENCE)
    assert "repair" not in caplog.text


def test_requirements_are_checked_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    repair.check(DATABASE)
    with pytest.raises(ConfigurationError, match="--repair needs DATABASE_URL"):
        repair.check({})
    monkeypatch.setattr(repair, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tickpipe\[backfill\]'"):
        repair.check(DATABASE)
