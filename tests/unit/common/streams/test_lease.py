"""The lease has one holder, and an epoch that only rises."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

import fakeredis
import pytest
import redis

from common.errors import FencedError, StreamOutageError
from common.streams.lease import Lease, active_producers, feed_digest, lease_key, next_epoch
from common.streams.stream import Fence, Numbered, Stream
from producer.spool_folder import spool_path, taken_over


class LeaseMaker(Protocol):
    def __call__(self, holder: str) -> Lease: ...


@pytest.fixture
def prices(redis_client: redis.Redis) -> Stream:
    return Stream(redis_client, "prices")


@pytest.fixture
def make_lease(redis_server: fakeredis.FakeServer) -> LeaseMaker:
    def make(holder: str) -> Lease:
        client = fakeredis.FakeStrictRedis(server=redis_server, protocol=2)
        others = [Stream(client, "prices:feed")]
        return Lease(Stream(client, "prices"), lambda: others, "twelvedata", holder, 5.0)

    return make


def acquired(lease: Lease) -> Fence:
    fence = lease.acquire()
    assert fence
    return fence


def expire(prices: Stream) -> None:
    prices.client.delete(lease_key("prices", "twelvedata"))


def append(prices: Stream, fence: Fence, number: int) -> None:
    prices.append_once([Numbered("1", 0, [(number, {"session": "1", "seq": str(number)})])], fence=fence)


def test_lease_of_another_type_is_named(make_lease: LeaseMaker, prices: Stream) -> None:
    """If the message named the stream instead, a person would delete the prices."""
    prices.client.rpush(lease_key("prices", "twelvedata"), "x")
    with pytest.raises(StreamOutageError, match=r"the key '\{prices\}:lease:twelvedata' has another type"):
        make_lease("one").acquire()


def test_fence_that_redis_has_lost_is_raised_again(make_lease: LeaseMaker, prices: Stream) -> None:
    earlier = acquired(make_lease("one"))
    expire(prices)
    other = make_lease("other")
    fence = acquired(other)
    prices.client.flushall()
    other.renew(fence)
    assert active_producers(prices) == {"twelvedata": "other"}
    with pytest.raises(FencedError):
        append(prices, earlier, 1)
    with pytest.raises(FencedError):
        append(Stream(prices.client, "prices:feed"), earlier, 1)
    append(prices, fence, 1)


def test_one_producer_has_the_lease(make_lease: LeaseMaker, prices: Stream) -> None:
    one, other = make_lease("one"), make_lease("other")
    assert active_producers(prices) == {}
    fence = acquired(one)
    assert other.acquire() is None
    assert one.holder() == other.holder() == "one"
    assert active_producers(prices) == {"twelvedata": "one"}
    one.renew(fence)
    one.release()
    assert acquired(other).epoch > fence.epoch
    assert active_producers(prices) == {"twelvedata": "other"}


def test_holder_whose_lease_has_ended_is_fenced(make_lease: LeaseMaker, prices: Stream) -> None:
    one, other = make_lease("one"), make_lease("other")
    old = acquired(one)
    append(prices, old, 1)
    expire(prices)
    new = acquired(other)
    with pytest.raises(FencedError) as appending:
        append(prices, old, 2)
    with pytest.raises(FencedError) as renewing:
        one.renew(old)
    assert appending.value.since == renewing.value.since == new.epoch
    append(prices, new, 2)
    one.release()  # of another one's lease: no effect
    other.renew(new)


def test_lease_that_was_lost_with_a_redis_is_taken_again(make_lease: LeaseMaker, prices: Stream) -> None:
    lease = make_lease("one")
    fence = acquired(lease)
    prices.client.flushall()
    lease.renew(fence)
    assert lease.holder() == "one"
    append(prices, fence, 1)


def test_producer_that_was_active_in_between_fences_even_after_it_has_ended(
    make_lease: LeaseMaker, prices: Stream
) -> None:
    one, other = make_lease("one"), make_lease("other")
    fence = acquired(one)
    expire(prices)
    acquired(other)
    other.release()
    with pytest.raises(FencedError):
        one.renew(fence)
    assert one.holder() is None


def test_holder_that_was_paused_before_its_claim_fences_no_other(
    make_lease: LeaseMaker, prices: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_lease("one"), make_lease("other")
    claim, found = one._claim, []

    def pause(**arguments: object) -> object:
        expire(prices)
        found.append(acquired(other))
        return claim(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(one, "_claim", pause)
    assert one.acquire() is None
    append(prices, found[0], 1)


def test_epoch_rises_although_the_clock_goes_back(make_lease: LeaseMaker, prices: Stream) -> None:
    prices.client.hset("{prices}:fence", "twelvedata", str(5 * 10**15))
    assert acquired(make_lease("one")).epoch == 5 * 10**15 + 1


def test_outage_does_not_end_the_lease(make_lease: LeaseMaker, redis_server: fakeredis.FakeServer) -> None:
    lease = make_lease("one")
    fence = acquired(lease)
    redis_server.connected = False
    with pytest.raises(StreamOutageError):
        lease.renew(fence)
    redis_server.connected = True
    lease.renew(fence)


def test_next_epoch_is_that_of_the_producer_that_took_over(
    make_lease: LeaseMaker, prices: Stream, tmp_path: Path
) -> None:
    """A spool's name has the epoch of its producer, and a digest of the feed's name."""
    fences = []
    for number in range(4):
        fences.append(acquired(make_lease(f"holder {number}")))
        expire(prices)
    paths = [spool_path(tmp_path, 1, fence) for fence in fences]
    assert [taken_over(prices, path) for path in paths] == [*(fence.epoch for fence in fences[1:]), None]
    assert taken_over(prices, spool_path(tmp_path, 1)) is None
    assert taken_over(prices, spool_path(tmp_path, 1, Fence("another feed", 1))) is None
    assert active_producers(prices) == {}


def test_only_the_newest_epochs_are_kept(make_lease: LeaseMaker, prices: Stream) -> None:
    first = acquired(make_lease("first"))
    for number in range(110):
        expire(prices)
        last = acquired(make_lease(str(number)))
    fields = cast("dict[bytes, bytes]", prices.client.hgetall("{prices}:fence"))
    kept = [name for name in fields if name != b"twelvedata"]
    assert len(kept) == 1
    epochs = fields[kept[0]].split()
    assert len(epochs) == 100
    assert int(epochs[-1]) == last.epoch
    assert next_epoch(prices, feed_digest("twelvedata"), first.epoch) == int(epochs[0])
