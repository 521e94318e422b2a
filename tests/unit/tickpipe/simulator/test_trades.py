"""The trades of a simulated exchange: numbered without a hole, repeatable, and not kept in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from tests.support.recorded_venue import SESSIONS
from tickpipe.simulator.misbehaviour import Misbehaviour
from tickpipe.simulator.recording import Recording
from tickpipe.simulator.trades import BLOCK, OPENED, Market, Trade
from tickpipe.simulator.venues import VENUES

NOW = 1_800_000_000.0
COINBASE = VENUES["coinbase"]


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def market(clock: Clock, rate: float = 10.0, seed: int = 1) -> Market:
    return Market(COINBASE.listings(), rate, seed, clock)


def test_trades_are_numbered_in_the_order_of_their_times() -> None:
    clock = Clock()
    tape = market(clock)
    before = tape.last("BTC-USD")
    clock.now += 100
    trades = tape.trades("BTC-USD", before + 1, tape.last("BTC-USD"))
    assert len(trades) in (999, 1000, 1001)
    assert [trade.number for trade in trades] == list(range(before + 1, before + 1 + len(trades)))
    assert all(earlier.at < later.at for earlier, later in pairwise(trades))
    assert trades[0].at > NOW * 1e6
    assert trades[-1].at <= clock.now * 1e6
    assert {trade.side for trade in trades} == {"buy", "sell"}
    assert all(float(trade.size) > 0 and 80_000 < float(trade.price) < 120_000 for trade in trades)


def test_a_market_goes_on_while_no_simulator_runs() -> None:
    clock = Clock()
    first = market(clock)
    last = first.last("ETH-USD")
    trades = first.trades("ETH-USD", last - 600, last)
    clock.now += 5
    later = market(clock)
    assert later.trades("ETH-USD", last - 600, last) == trades
    assert 49 <= later.last("ETH-USD") - last <= 51


def test_no_trade_of_the_future_is_known() -> None:
    clock = Clock()
    tape = market(clock)
    last = tape.last("BTC-USD")
    assert tape.trades("BTC-USD", last + 1, last + 10) == []
    assert len(tape.trades("BTC-USD", last - 1, last + 10)) == 2


def test_trades_begin_with_the_market() -> None:
    tape = market(Clock(OPENED / 1e6 + 60))
    last = tape.last("BTC-USD")
    assert len(tape.trades("BTC-USD", 0, last)) in (599, 600, 601)
    assert tape.after("BTC-USD", 0) == tape.trades("BTC-USD", 0, last)[0].number


def test_symbols_have_different_numbers_and_seeds_different_prices() -> None:
    clock = Clock()
    lasts = [market(clock).last(name) for name in COINBASE.listings()]
    assert len(set(lasts)) == len(lasts)
    last = lasts[0]
    assert market(clock).trades("BTC-USD", last, last) != market(clock, seed=2).trades("BTC-USD", last, last)


@pytest.mark.parametrize("rate", [0.01, 7.3, 5000.0])
def test_the_first_trade_after_a_moment_is_found(rate: float) -> None:
    tape = market(Clock(), rate)
    last = tape.last("BTC-USD")
    for earlier, later in pairwise(tape.trades("BTC-USD", last - BLOCK, last)):
        assert tape.after("BTC-USD", earlier.at) == later.number
        assert tape.after("BTC-USD", later.at - 1) == later.number


def test_old_trades_are_made_again() -> None:
    tape = market(Clock(), rate=100)
    last = tape.last("BTC-USD")
    first = last - 100_000
    again = tape.trades("BTC-USD", first, first + 10)
    assert len(tape.trades("BTC-USD", first, last)) == 100_001
    assert tape.trades("BTC-USD", first, first + 10) == again


# --- Recorded sessions


def recording() -> Recording:
    (path,) = SESSIONS.glob("coinbase*")
    return Recording(path, COINBASE.parse)


def test_recorded_trades_are_known_once_they_were_played() -> None:
    tape = recording()
    assert len(tape.names) == 10
    first = tape.last("SKL-USD") + 1
    assert tape.trades("SKL-USD", 0, 10**9) == []
    for message in tape.messages:
        tape.play(message)
    trades = [trade for name in tape.names for trade in tape.trades(name, 0, 10**9)]
    assert len(trades) == 107, "97 of them after the subscription"
    ours = tape.trades("SKL-USD", 0, 10**9)
    assert [trade.number for trade in ours] == list(range(first, tape.last("SKL-USD") + 1))
    assert tape.trades("SKL-USD", ours[2].number, ours[4].number) == ours[2:5]
    assert tape.after("SKL-USD", ours[2].at) == ours[3].number
    assert tape.after("SKL-USD", ours[-1].at) == ours[-1].number + 1


def test_addresses_and_messages_of_the_client_are_not_played() -> None:
    assert all(message.text.startswith("{") for message in recording().messages)
    assert [message.at for message in recording().messages] == sorted(each.at for each in recording().messages)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "has no message"), (b"{}\n", "Expected lines TIME"), (b"\xff", "not UTF-8")],
)
def test_a_file_without_a_recording_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "session.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"session.txt.*{reason}"):
        Recording(path, COINBASE.parse)


# --- Misbehaviour


def passed(wire: Misbehaviour, count: int = 10_000) -> list[int]:
    trades = [Trade("A", number, "1", "1", "buy", number) for number in range(count)]
    return [each.number for trade in trades for each in wire(trade)]


def test_a_wire_passes_everything_by_default() -> None:
    assert passed(Misbehaviour(random.Random(1))) == list(range(10_000))


def test_a_wire_drops_a_share_of_the_trades() -> None:
    numbers = passed(Misbehaviour(random.Random(1), drop=0.2))
    assert numbers == sorted(set(numbers))
    assert 7_700 < len(numbers) < 8_300


def test_a_wire_repeats_a_share_of_the_trades() -> None:
    numbers = passed(Misbehaviour(random.Random(1), repeat=0.2))
    assert sorted(set(numbers)) == list(range(10_000))
    assert numbers == sorted(numbers)
    assert 11_700 < len(numbers) < 12_300


def test_a_wire_delays_a_share_of_the_trades_by_one() -> None:
    numbers = passed(Misbehaviour(random.Random(1), delay=0.2))
    assert len(set(numbers)) == len(numbers)
    assert set(range(9_999)) <= set(numbers)
    swapped = sum(later < earlier for earlier, later in pairwise(numbers))
    assert 1_400 < swapped < 2_000
    assert all(abs(number - place) <= 1 for place, number in enumerate(numbers))


def test_a_delayed_trade_waits_for_the_next_one_of_its_symbol() -> None:
    wire = Misbehaviour(random.Random(1), delay=1.0)
    one, other, next_one = (Trade(name, number, "1", "1", "buy", 1) for name, number in (("A", 1), ("B", 7), ("A", 2)))
    sent: list[Sequence[Trade]] = [wire(one), wire(other), wire(next_one)]
    assert sent == [(), (), (next_one, one)]


def test_a_seed_repeats_the_misbehaviour() -> None:
    first, second = (passed(Misbehaviour(random.Random(5), drop=0.1, repeat=0.1, delay=0.1)) for _ in range(2))
    assert first == second
