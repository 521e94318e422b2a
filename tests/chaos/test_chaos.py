"""A short chaos run loses and duplicates nothing."""

from __future__ import annotations

import os
import random

import pytest

from tests.chaos import failovers
from tests.chaos.run import chaos, report


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
