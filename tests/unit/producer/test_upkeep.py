"""The spool of a dead producer is compared with the first price of the producer that was active after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest

from common import clock
from producer import upkeep
from producer.spool import Outgoing, Spool
from producer.upkeep import FIRST_PRICE_WITHIN, UndecidedError, Upkeep

SECOND = 1_000_000


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """With prices that were received in each of the last ten seconds."""
    now = clock.microseconds()
    with closing(Spool(tmp_path / "1.ab.2.spool", max_bytes=10**6)) as spool:
        spool.put(
            [
                Outgoing("prices", {"session": "1", "seq": str(seq), "received": str(now + (seq - 10) * SECOND)})
                for seq in range(1, 11)
            ]
        )
        yield spool


def discard(monkeypatch: pytest.MonkeyPatch, spool: Spool, *, taken_over: float | None, first: float | None) -> None:
    """`taken_over` and `first`: when the other one became active, and its first price was received, seconds ago."""
    now = clock.microseconds()
    since, received = (None if ago is None else round(now - ago * SECOND) for ago in (taken_over, first))
    monkeypatch.setattr(upkeep, "taken_over", lambda *_: since)
    Upkeep._discard_doubled(Mock(), Mock(first_received=lambda _: received), spool)


def test_prices_from_the_first_one_of_the_other_producer_on_are_discarded(
    monkeypatch: pytest.MonkeyPatch, spool: Spool
) -> None:
    discard(monkeypatch, spool, taken_over=7.5, first=4.5)
    assert spool.entries == 5


def test_spool_waits_until_the_other_producer_has_a_price(monkeypatch: pytest.MonkeyPatch, spool: Spool) -> None:
    with pytest.raises(UndecidedError, match="has no price yet"):
        discard(monkeypatch, spool, taken_over=5, first=None)
    discard(monkeypatch, spool, taken_over=FIRST_PRICE_WITHIN + 1, first=None)
    assert spool.entries == 10


def test_nothing_is_discarded_if_no_other_producer_was_active(monkeypatch: pytest.MonkeyPatch, spool: Spool) -> None:
    discard(monkeypatch, spool, taken_over=None, first=4.5)
    assert spool.entries == 10
