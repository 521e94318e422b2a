"""Feed events: values are text, and the detail is a JSON object that any database can store."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import feed_event
from common.database.migrations import SQL_FOLDER
from common.errors import DecodeError

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


def test_feed_event_fields_are_text() -> None:
    event = feed_event.make(1700000000000000, 3, 1700000000000005, "subscribed", {"symbols": ["BTC/USD"]})
    assert event == ("1700000000000000", "3", "1700000000000005", "subscribed", '{"symbols": ["BTC/USD"]}')


@given(st.dictionaries(st.text(), JSON))
def test_detail_round_trips_except_characters_no_database_stores(detail: dict[str, Any]) -> None:
    fields = feed_event.encode(feed_event.make(1, 2, 3, "refused", detail))
    event = feed_event.decode({name.encode(): value.encode() for name, value in fields.items()})
    found = json.loads(event.detail)
    spelled = json.dumps(found, ensure_ascii=False)
    assert "\\u0000" not in spelled.replace("\\\\", "")
    spelled.encode()  # no lone surrogate
    if not re.search("[\0\ud800-\udfff]", json.dumps(detail, ensure_ascii=False).replace("\\u0000", "\0")):
        assert found == detail


@pytest.mark.parametrize(
    ("text", "kept"), [("a\0b", "a?b"), ("\0\0", "??"), ("\\\0", "\\?"), ("\\u0000", "\\u0000"), ("\ud800é😀", "?é😀")]
)
def test_unstorable_characters_become_question_marks(text: str, kept: str) -> None:
    assert json.loads(feed_event.make(1, 2, 3, "disconnected", {"cause": text}).detail) == {"cause": kept}


def test_price_is_not_a_feed_event() -> None:
    with pytest.raises(DecodeError, match="not those of a feed event: session, seq"):
        feed_event.decode({b"session": b"1", b"seq": b"2"})


def test_sql_has_the_same_report_timeout() -> None:
    sql = (SQL_FOLDER / "0040_names.sql").read_text(encoding="utf-8")
    assert f"RETURN interval '{feed_event.REPORT_TIMEOUT:.0f} seconds';" in sql
