"""Counts in log lines and messages."""

from __future__ import annotations

import pytest

from common.formatting import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "session", "0 sessions"),
        (1, "entry", "1 entry"),
        (2, "pending entry", "2 pending entries"),
        (1500, "batch", "1500 batches"),
        (2, "day", "2 days"),
    ],
)
def test_a_count_has_the_right_form_of_its_noun(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
