"""Appends by number: each entry once, in order, and by the active producer only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BehindError, ConfigurationError, FencedError
from common.streams.keys import beside
from common.streams.stream import Fence, Numbered, Stream
from tests.unit.conftest import StreamMaker, new_stream


def batch(*numbers: int, session: str = "1", after: int = 0) -> Numbered:
    return Numbered(session, after, [(number, {"session": session, "seq": str(number)}) for number in numbers])


def appended(stream: Stream) -> list[tuple[int, int]]:
    fields = [entry.fields or {} for entry in stream.scan(b"-", 100)]
    return [(int(each[b"session"]), int(each[b"seq"])) for each in fields]


def test_entries_are_appended_once(make_stream: StreamMaker) -> None:
    stream = make_stream()
    assert stream.append_once([batch(1, 2)]) == (2, False)
    assert stream.append_once([batch(1, 2, 5)]) == (1, False)
    assert stream.append_once([batch(1, 2, 5)]) == (0, False)
    assert appended(stream) == [(1, 1), (1, 2), (1, 5)]


def test_each_session_has_a_mark(make_stream: StreamMaker) -> None:
    stream = make_stream()
    stream.append_once([batch(1, 2), batch(1, session="2")])
    stream.append_once([batch(2, 3), batch(1, 2, session="2")])
    assert appended(stream) == [(1, 1), (1, 2), (2, 1), (1, 3), (2, 2)]


def test_later_entries_wait_for_earlier_ones(make_stream: StreamMaker) -> None:
    stream = make_stream()
    with pytest.raises(BehindError, match="up to 0 only"):
        stream.append_once([batch(3, after=2)])
    assert appended(stream) == []
    stream.append_once([batch(1, 2)])
    stream.append_once([batch(after=2)])
    stream.append_once([batch(3, after=2)])
    assert appended(stream) == [(1, 1), (1, 2), (1, 3)]


def test_only_the_active_producer_appends(make_stream: StreamMaker) -> None:
    stream = make_stream()
    stream.append_once([batch(1)], fence=Fence("twelvedata", 100))
    stream._redis.hset(beside(stream.key, "fence"), "twelvedata", "200")
    with pytest.raises(FencedError) as raised:
        stream.append_once([batch(2)], fence=Fence("twelvedata", 100))
    assert raised.value.since == 200
    stream.append_once([batch(2)], fence=Fence("twelvedata", 200))
    stream.append_once([batch(3)], fence=Fence("another feed", 100))
    stream.append_once([batch(4)])
    assert [seq for _, seq in appended(stream)] == [1, 2, 3, 4]


def test_text_that_utf8_cannot_spell_is_appended(make_stream: StreamMaker) -> None:
    stream = make_stream()
    stream.append_once([Numbered("1", 0, [(1, {"symbol": "\ud800"})])])
    assert [entry.fields for entry in stream.scan(b"-", 9)] == [{b"symbol": b"\xed\xa0\x80"}]


@given(cuts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12))
def test_repeated_batches_in_any_pieces_append_each_number_once(cuts: list[tuple[int, int]]) -> None:
    """A spool is sent again from its first entry after every error. A batch begins at the latest after the mark."""
    stream, mark = new_stream(), 0
    for start, length in cuts:
        numbers = range(min(start, mark) + 1, min(start, mark) + length + 1)
        stream.append_once([batch(*numbers)])
        mark = max([mark, *numbers])
    assert [seq for _, seq in appended(stream)] == [*range(1, mark + 1)]


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("prices", "{prices}:high"),
        ("prices:feed", "{prices:feed}:high"),
        ("prices:{0}", "prices:{0}:high"),
        ("prices:{0}:feed", "prices:{0}:feed:high"),
    ],
)
def test_key_beside_a_stream_is_in_its_slot(key: str, named: str) -> None:
    assert beside(key, "high") == named


def test_server_without_waitaof_is_refused(make_stream: StreamMaker) -> None:
    """fakeredis does not have the command, as Redis 7.0 does not."""
    stream = make_stream()
    assert not stream.check_append_once(0)
    with pytest.raises(ConfigurationError, match=r"REDIS_REPLICAS is set, but .*: it needs Redis 7.2 or newer"):
        stream.check_append_once(1)
