"""A short chaos run loses and duplicates nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

from tests.chaos import exchange, failovers
from tests.chaos.oracle import Judgement
from tests.chaos.run import chaos, report
from tickpipe.simulator.trades import Market
from tickpipe.simulator.venues import VENUES


@pytest.mark.timeout(600)
def test_chaos_loses_and_duplicates_nothing() -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    seconds = float(os.environ.get("CHAOS_SECONDS") or 60.0)
    judgement, counts = chaos(seed, seconds, 2500.0, print, least=int(1000 * seconds))
    words = report(judgement, counts, seed)
    print(words)
    assert not judgement.faults, words
    assert judgement.dead_letters > 0


@pytest.mark.timeout(600)
def test_failovers_lose_and_duplicate_nothing() -> None:
    """Each kind of failover at least once."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    judgement, words = failovers.chaos(seed, float(os.environ.get("CHAOS_SECONDS") or 0.0), 500.0, print)
    print(words)
    assert not judgement.faults, words


@pytest.mark.timeout(600)
def test_trades_of_a_misbehaving_exchange_are_stored_once() -> None:
    """Also those that were made while no producer ran."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    seconds = float(os.environ.get("CHAOS_SECONDS") or 15.0)
    judgement, counts = exchange.run("coinbase", seed, seconds, print)
    words = exchange.report(judgement, counts, seed)
    print(words)
    assert not judgement.faults, words
    assert judgement.stored > 0
    assert judgement.repaired > 0


def test_the_oracle_of_an_exchange_finds_every_difference() -> None:
    tape = Market(VENUES["coinbase"].listings(), 10, 1, lambda: 1_800_000_000.0)
    last = tape.last("BTC-USD")
    rows = [(each.number, each.price, each.size, each.side, each.at) for each in tape.trades("BTC-USD", last - 9, last)]

    def found(rows: Sequence[exchange.Row]) -> list[str]:
        judgement = Judgement()
        assert exchange.compare(judgement, "BTC/USD", rows, tape, "BTC-USD") in {0, 10}
        return judgement.faults

    assert found(rows) == []
    assert found([]) == ["NOTHING STORED of BTC/USD"]
    assert found([*rows[:4], *rows[5:]]) == [f"MISSING: 1 trades of BTC/USD, [{last - 5}]"]
    number, price, size, side, at = rows[4]
    for changed in ((number, "1", size, side, at), (number, price, size, side, at + 1)):
        assert found([*rows[:4], changed, *rows[5:]]) == [f"CHANGED: 1 trades of BTC/USD, [{changed}]"]
