"""A feed event: its values as text, its detail as a JSON object that any database takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import feed_event
from common.errors import DecodeError

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


def test_a_feed_event_is_text_throughout() -> None:
    event = feed_event.make(1700000000000000, 3, 1700000000000005, "subscribed", {"symbols": ["BTC/USD"]})
    assert event == ("1700000000000000", "3", "1700000000000005", "subscribed", '{"symbols": ["BTC/USD"]}')


@given(st.dictionaries(st.text(), JSON))
def test_any_detail_survives_the_stream(detail: dict[str, Any]) -> None:
    fields = feed_event.encode(feed_event.make(1, 2, 3, "refused", detail))
    event = feed_event.decode({name.encode(): value.encode() for name, value in fields.items()})
    assert json.loads(event.detail) == detail
    assert event.detail.isascii()  # so that no lone surrogate of the vendor's can keep it from being written


def test_a_price_is_no_feed_event() -> None:
    with pytest.raises(DecodeError, match="not those of a feed event: session, seq"):
        feed_event.decode({b"session": b"1", b"seq": b"2"})
