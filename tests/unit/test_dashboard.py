"""The dashboard's pure parts: what is drawn, and in which words."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from common.errors import ConfigurationError, OutageError
from common.settings import Secret
from common.streams.group import Backlog, Member
from tickpipe import dashboard, formatting
from tickpipe.dashboard import chart, parts
from tickpipe.dashboard.data import Candle, Gap, Interval, Tick
from tickpipe.dashboard.health import (
    Consumer,
    ConsumerTracker,
    Count,
    Database,
    Health,
    HealthMonitor,
    Rate,
    Session,
    boxes,
    completeness,
)
from tickpipe.dashboard.health import headline as headline_of
from tickpipe.dashboard.history import Look, with_ticks
from tickpipe.dashboard.quotes import MINUTES, Quote
from tickpipe.inspect.cached_query import CachedQuery

MINUTE = Interval("1m", 60)
NOON = 1_795_348_800.0  # seconds since 1970, a whole minute


def candle(minute: int, close: float = 2.0, ticks: int = 5) -> Candle:
    return Candle(NOON + 60 * minute, 1.0, 3.0, 0.5, close, ticks, 7.0)


def tick(second: float, price: float) -> Tick:
    return Tick(NOON + second, NOON + second, price, None, None, 1, int(second))


# --- Candles move on with ticks


def test_the_newest_candle_moves_with_a_tick_and_one_that_is_in_it_already_changes_nothing() -> None:
    moved = with_ticks([candle(0), candle(1)], [tick(70, 9.0), tick(65, 0.1), tick(59, 50.0)], 60)
    assert moved == [candle(0), candle(1)._replace(high=9.0, low=0.1, close=9.0)]
    assert with_ticks(moved, [tick(70, 9.0)], 60) == moved


def test_a_tick_of_a_new_minute_begins_a_candle() -> None:
    moved = with_ticks([candle(0)], [tick(125, 5.0), tick(120, 4.0), tick(61, 3.0)], 60)
    assert moved[1:] == [
        Candle(NOON + 60, 3.0, 3.0, 3.0, 3.0, 1, None),
        Candle(NOON + 120, 4.0, 5.0, 4.0, 5.0, 2, None),
    ]


def test_ticks_alone_make_candles() -> None:
    assert with_ticks([], [tick(3, 5.0)], 60) == [Candle(NOON, 5.0, 5.0, 5.0, 5.0, 1, None)]
    assert with_ticks([], [], 60) == []


# --- The axis


def axis(candles: list[Candle], gaps: list[Gap], now: float, most: int = 100) -> list[chart.Place]:
    return [place for place in chart.places(candles, gaps, 60, most, now) if place.start >= candles[0].start]


def test_a_quiet_time_takes_no_place_and_a_blind_one_does() -> None:
    candles = [candle(0), candle(5)]
    now = NOON + 330
    assert [place.candle for place in axis(candles, [], now)] == candles
    blind = axis(candles, [Gap(NOON + 60, NOON + 300, "disconnected")], now)
    assert [place.start - NOON for place in blind] == [0, 60, 120, 180, 240, 300]
    assert [place.candle for place in blind] == [candles[0], None, None, None, None, candles[1]]


def test_a_long_gap_is_squeezed_and_times_in_it_still_have_their_place() -> None:
    gap = Gap(NOON + 60, NOON + 60_060, "stopped")
    found = axis([candle(0), candle(1001)], [gap], NOON + 60_070)
    assert len(found) == 1 + chart.MOST_BLIND + 1
    assert chart.position(found, gap.since) == 1
    assert chart.position(found, NOON + 30_060) == pytest.approx(1 + chart.MOST_BLIND / 2)
    assert chart.position(found, gap.until or 0) == 1 + chart.MOST_BLIND


def test_a_gap_that_goes_on_reaches_to_now() -> None:
    gap = Gap(NOON + 50, None, "disconnected: reset")
    found = axis([candle(0)], [gap], NOON + 200)
    assert len(found) == 4
    ((since, until, _),) = chart.areas(found, [gap], NOON + 200)
    assert [since, until] == pytest.approx([50 / 60, 200 / 60])


def test_a_short_gap_can_be_seen_and_one_before_the_chart_cannot() -> None:
    found = axis([candle(0), candle(1)], [], NOON + 100)
    short, before = Gap(NOON + 90, NOON + 90.5, "x"), Gap(NOON - 90, NOON - 50, "y")
    ((since, until, gap),) = chart.areas(found, [before, short], NOON + 100)
    assert gap is short
    assert until - since == pytest.approx(chart.NARROWEST)


def test_a_few_candles_stand_at_the_right_and_many_are_cut_at_the_left() -> None:
    few = chart.places([candle(0)], [], 60, 150, NOON + 30)
    assert len(few) == chart.FEWEST
    assert few[-1].candle == candle(0)
    assert chart.places([candle(n) for n in range(99)], [], 60, 50, NOON)[0].candle == candle(49)
    assert chart.places([], [], 60, 150, NOON) == []


def test_the_data_are_merged_into_the_axes() -> None:
    found = chart.places([candle(0), candle(1)], [], 60, 150, NOON + 100)
    changes = chart.data(found, [], 2, NOON + 100)
    whole: dict[str, Any] = chart.whole(chart.options("BTC/USD", MINUTE, 2), changes)
    candles, bars, gaps = whole["series"]
    assert candles["type"] == "candlestick"
    assert candles["data"][-1] == [1.0, 2.0, 0.5, 3.0]  # ECharts' order: open, close, low, high
    assert bars["data"][-1]["value"] == 7.0
    assert bars["name"] == "volume"
    assert gaps["markArea"]["data"] == []
    assert whole["xAxis"][0]["data"][-1] == "2026-11-22T12:01:00+00:00"
    assert whole["xAxis"][2]["max"] == chart.FEWEST
    assert [len(axes) for axes in (whole["xAxis"], whole["yAxis"])] == [3, 3]


def test_where_the_feed_tells_no_volume_the_bars_are_ticks() -> None:
    found = chart.places([candle(0)._replace(volume=None)], [], 60, 150, NOON)
    bars = chart.data(found, [], 2, NOON)["series"][1]
    assert (bars["name"], bars["data"][-1]["value"]) == ("ticks", 5)


@pytest.mark.parametrize(
    ("volumes", "top"), [([5, 7, 90], 1.2 * 7), ([5, 7, 20], None), ([5, 90], None), ([0, 0, 9], None)]
)
def test_a_bar_that_dwarfs_all_others_is_cut_off(volumes: list[float], top: float | None) -> None:
    candles = [candle(n)._replace(volume=volume) for n, volume in enumerate(volumes)]
    assert chart.data(chart.places(candles, [], 60, 150, NOON), [], 2, NOON)["yAxis"][1]["max"] == top


def test_a_long_price_has_room_beside_the_chart() -> None:
    rupiah = candle(0)._replace(open=1.5e9, high=1.6e9, low=1.4e9, close=1.5e9)
    rooms = [
        chart.data(chart.places([one], [], 60, 150, NOON), [], 2, NOON)["grid"][0]["right"]
        for one in (candle(0), rupiah)
    ]
    assert rooms == [74, 122]


# --- Quotes


def test_a_quote_keeps_the_last_minutes_and_tells_their_change() -> None:
    quote = Quote("A", 10.0, NOON, NOON, 2, {int(NOON // 60): 10.0})
    quote = quote.with_past({int(NOON // 60) - 1: 8.0, int(NOON // 60): 9.0})
    assert list(quote.closes.values()) == [8.0, 10.0]
    assert quote.change == pytest.approx(0.25)
    later = quote.then(12.5, NOON + 60 * (MINUTES - 1), NOON)
    assert list(later.closes.values()) == [10.0, 12.5]
    assert later.places == 2
    assert later.then(12.125, later.time, NOON).places == 3
    assert Quote("A", 0.0, NOON, NOON, 2, {1: 0.0}).change is None
    assert Quote("OIL", -30.0, NOON, NOON, 2, {1: -40.0}).change == pytest.approx(0.25)  # it rose


# --- The pipeline's health


def session(**other: Any) -> Session:
    fields = {"id": int(NOON * 1e6), "feed": "twelvedata", "last_word": NOON, "stopped": False}
    fields |= {"connection": "connected", "cause": "", "last_seq": 100, "verified": False}
    return Session(**{**fields, **other})


WELL = Health(
    at=NOON + 2,
    backlog=Backlog(1000, 50, 3, 2, 2),
    received_rate=20.0,
    stored_rate=19.5,
    consumers=[Consumer("a", 2, 0.3, 19.5, "works")],
    sessions=[session()],
    database=Database("PostgreSQL 18.6", 12_400_000, 0),
)


def with_(**other: Any) -> Health:
    return Health(**{**WELL.__dict__, **other})


def test_all_is_well() -> None:
    websocket, stream, consumers, database = boxes(WELL)
    assert [box.state for box in boxes(WELL)] == ["good"] * 4
    assert (websocket.figure, stream.figure, consumers.figure, database.figure) == ("20.0", "5", "1", "19.5")
    assert database.lines == ("no dead letters", "PostgreSQL 18.6 · 12.4 MB")
    assert headline_of(WELL) == ("good", "all is well")


SICK: list[tuple[dict[str, Any], int, str, str]] = [
    ({"sessions": []}, 0, "idle", "no producer yet"),
    ({"sessions": [session(stopped=True)]}, 0, "idle", "producer stopped 2 s ago"),
    ({"sessions": [session(last_word=NOON - 60)]}, 0, "bad", "producer silent for 62 s"),
    ({"sessions": [session(last_word=NOON - 60)], "consumers": []}, 0, "idle", "not known"),
    ({"sessions": [session(last_word=NOON - 60)], "redis_trouble": "refused"}, 0, "idle", "not known"),
    ({"sessions": [session(last_word=NOON - 60)], "database_trouble": "refused"}, 0, "idle", "not known"),
    ({"sessions": [session(connection="disconnected", cause="reset")]}, 0, "bad", "disconnected"),
    ({"sessions": [session(), session(connection="disconnected")]}, 0, "bad", "disconnected"),
    ({"redis_trouble": "Redis: refused"}, 1, "bad", "cannot be read"),
    ({"backlog": None}, 1, "idle", "nothing read yet"),
    ({"backlog": Backlog(9, 9, 5000, 0, 1)}, 1, "warn", "5,000 unread · 0 in hand"),
    ({"holds_back": "slow"}, 1, "warn", "3 unread · 2 in hand"),
    ({"consumers": [Consumer("a", 7, 5.0, 0.0, "silent")]}, 2, "bad", "1 stopped, 7 in hand"),
    ({"consumers": [Consumer("a", 0, 5.0, 0.0, "gone")]}, 2, "bad", "1 stopped"),
    ({"consumers": []}, 2, "bad", "none there"),
    ({"consumers": [], "backlog": Backlog(9, 0, 0, 0, 0)}, 2, "idle", "none there"),
    ({"database_trouble": "the database: refused"}, 3, "bad", "cannot be read"),
    ({"database": Database("PostgreSQL 18.6", 1, 1000)}, 3, "warn", "1,000+ dead letters"),
    ({"database": None}, 3, "idle", "nothing read yet"),
]


@pytest.mark.parametrize(
    ("change", "place", "state", "words"), SICK, ids=[f"{row[3]} {row[1]} {', '.join(row[0])}" for row in SICK]
)
def test_what_is_not_well_shows_in_its_box(change: dict[str, Any], place: int, state: str, words: str) -> None:
    found = boxes(with_(**change))[place]
    assert (found.state, found.lines[0]) == (state, words)
    if state in {"bad", "warn"}:
        assert headline_of(with_(**change))[0] == state


def test_a_producer_is_not_blamed_for_a_word_that_nobody_could_store() -> None:
    stopped = [Consumer("a", 7, 20.0, 0.0, "silent")]
    assert headline_of(with_(sessions=[session(last_word=NOON - 20)], consumers=stopped)) == (
        "bad",
        "consumers: 1 stopped, 7 in hand",
    )


def test_a_rate_is_taken_over_the_last_seconds() -> None:
    rate = Rate()
    assert rate(0.0, 100) == 0
    assert [rate(float(second), 100 + 10 * second) for second in range(1, 9)] == [10.0] * 8
    assert [rate(float(second), 180) for second in range(9, 14)][-1] == 0
    assert rate(14.0, 5) == 0  # counted anew
    assert rate(15.0, 7) == 2


def test_a_consumer_that_stops_is_silent_and_gone_when_its_name_goes_and_forgotten_later() -> None:
    roll = ConsumerTracker()

    def called(now: float, *members: Member) -> list[tuple[str, str]]:
        return [(one.name, one.state) for one in roll.call(now, members, {"a": 10 * int(now)})]

    assert called(0, Member("a", 0, 0.5), Member("b", 3, 0.1)) == [("a", "works"), ("b", "works")]
    assert called(5, Member("a", 0, 0.5), Member("b", 3, 5.0)) == [("a", "works"), ("b", "silent")]
    assert called(9, Member("a", 0, 0.5)) == [("a", "works"), ("b", "gone")]
    assert called(10) == [("b", "gone")]  # a has said goodbye: it was not silent
    assert called(80) == []


def test_a_name_that_comes_back_is_not_gone() -> None:
    roll = ConsumerTracker()
    roll.call(0, [Member("a", 0, 9.0)], {})
    roll.call(1, [], {})
    assert [one.state for one in roll.call(2, [Member("a", 0, 0.1)], {})] == ["works"]


COMPLETE: list[tuple[Session, tuple[str, str]]] = [
    (session(verified=True), ("good", "complete, verified")),
    (session(), ("idle", "not verified yet")),
    (session(counted=Count(0, 0, 0)), ("idle", "has just begun")),
    (session(counted=Count(100, 100, 0)), ("good", "complete so far")),
    (session(counted=Count(100, 100, 0), stopped=True), ("good", "complete, counted")),
    (session(counted=Count(100, 96, 4)), ("idle", "4 on their way")),
    (session(counted=Count(100, 95, 4)), ("bad", "5 not found: tickpipe verify")),
]


@pytest.mark.parametrize(("one", "expected"), COMPLETE, ids=[row[1][1] for row in COMPLETE])
def test_a_sessions_completeness(one: Session, expected: tuple[str, str]) -> None:
    assert completeness(one, NOON + 1) == expected


# --- Words


def test_what_is_not_ours_is_escaped() -> None:
    nasty = "<b>&"
    health = with_(consumers=[Consumer(nasty, 0, 0, 0, "works")], sessions=[session(feed=nasty)])
    box = boxes(with_(sessions=[session(connection="disconnected", cause=nasty)]))[0]
    for html in (parts.members(health.consumers), parts.sessions(health), parts.lines(box)):
        assert "&lt;b&gt;&amp;" in html
        assert nasty not in html


def test_ticks_and_facts_say_what_there_is() -> None:
    quote = Quote("A", 2.0, NOON, NOON, 2, {})
    look = Look([candle(0)], [], [tick(1.25, 2.0)])
    assert "<td>12:00:01<small>.250</small></td><td>2.00</td><td>–</td><td>–</td>" in parts.ticks(look.ticks, 2)
    assert "high <b>3.00</b>" in parts.facts(quote, look, NOON + 3)
    assert parts.facts(quote, Look([], [], []), NOON + 3) == "<span>age <b>3 s</b></span>"


def test_gaps_in_words() -> None:
    assert parts.gaps([]) == "no gap in this chart"
    assert parts.gaps([Gap(NOON, NOON + 7, "stopped")]) == "1 gap: 22 Nov 12:00:00, 7 s (stopped)"
    assert parts.gaps([Gap(0, 1, ""), Gap(NOON, None, "x")]) == "2 gaps, the newest: blind since 22 Nov 12:00:00 (x)"


@pytest.mark.parametrize(
    ("prices", "places"),
    [([1.5, 2.25], 2), ([228.50999], 2), ([96_312.123], 2), ([1.05412], 5), ([7.0], 0), ([1.23e-10], 12), ([], 2)],
)
def test_as_many_decimals_as_were_told_within_reason(prices: list[float], places: int) -> None:
    assert formatting.decimals(prices) == places


def test_numbers_as_the_page_writes_them() -> None:
    assert (formatting.price(1234.5, 2), formatting.change(-0.0123), formatting.change(None)) == (
        "1,234.50",
        "−1.23 %",
        "–",
    )
    assert [formatting.change(each) for each in (0.0, 0.00001, -0.00001)] == ["0.00 %"] * 3
    assert [formatting.rate(rate) for rate in (0.0, 12.34, 1234.5)] == ["0.0", "12.3", "1,234"]
    assert [formatting.milliseconds(each) for each in (None, 0.0042, 61.0)] == ["–", "4 ms", "61 s"]
    assert [formatting.span(each) for each in (-1, 99, 100, 7200, 864_000)] == [
        "0 s",
        "99 s",
        "2 min",
        "2 h",
        "10 days",
    ]
    assert [formatting.size(each) for each in (999, 12_400_000, 3e12)] == ["999 B", "12.4 MB", "3 TB"]


# --- Asking no more often than is fair


class Question:
    """Answers with the count of its askings, by a clock of its own, each after `took` seconds."""

    def __init__(self) -> None:
        self.now, self.took, self.asked = 0.0, 0.0, 0
        self.paced = CachedQuery(self._ask, 1.0, lambda: self.now)

    def _ask(self) -> int:
        self.now += self.took
        self.asked += 1
        return self.asked

    def at(self, now: float, took: float = 0.0) -> int:
        """The answer then."""
        self.now, self.took = now, took
        return self.paced()


def test_an_answer_is_kept_and_a_slow_one_longer() -> None:
    question = Question()
    assert (question.at(0.0), question.at(0.0)) == (1, 1)
    assert question.at(1.0, took=0.5) == 2  # at 1.5, after half a second: once is no reason
    assert question.at(2.5, took=0.5) == 3  # at 3.0, after half a second again: 20 times that is due to the others
    assert question.at(12.9) == 3
    assert question.at(13.0) == 4


def test_one_stall_is_not_followed_by_minutes_of_an_old_answer() -> None:
    question = Question()
    assert question.at(0.0) == 1
    assert question.at(1.0, took=15.0) == 2  # the database hangs, and comes back
    assert question.at(17.0) == 3


def test_health_is_looked_at_again_at_once_however_long_the_wait_in_an_outage_was() -> None:
    now = 0.0
    stream, reader = Mock(group="timescale"), Mock()

    def wait(*_: object, **__: object) -> None:
        nonlocal now
        now += 5.0
        raise OutageError("Redis: Timeout")

    stream.groups.side_effect = reader.rows.side_effect = wait
    observatory = HealthMonitor(stream, reader, lambda: 0, every=1.0, monotonic=lambda: now)
    for looks in (1, 2, 3):
        assert observatory.look().redis_trouble == "Redis: Timeout"
        assert stream.groups.call_count == looks
        now += 1.0


# --- The extra, and the address


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda _: None)
    nowhere = Secret("x")
    config = dashboard.DashboardConfig(
        redis_url=nowhere, database_url=nowhere, price_stream="", consumer_group="", host="", port=0, simulated=False
    )
    with pytest.raises(ConfigurationError, match=r"pip install 'tickpipe\[dashboard\]'"):
        dashboard.serve(config, None, print)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_refused_and_up_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard.listen(dashboard.HOST, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"cannot listen on 127.0.0.1 port {port}: .* in use; another --port"
        ):
            dashboard.listen(dashboard.HOST, port)
        monkeypatch.setattr(dashboard, "PORT", port)
        assert dashboard.free_port() != port
    assert dashboard.free_port() == port


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nosuch.invalid", "127.0.0.1:8080"])
def test_a_host_that_is_not_of_this_machine_is_not_said_to_need_another_port(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--host is an address of this machine") as refused:
        dashboard.listen(host, 0)
    assert "--port" not in str(refused.value)
    assert "while attempting" not in str(refused.value)
