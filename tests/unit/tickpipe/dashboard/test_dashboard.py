"""The dashboard's pure parts: chart, quotes, boxes, HTML, formats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from common.errors import ConfigurationError, OutageError
from common.streams.group import Backlog, Member
from tickpipe import dashboard, formatting
from tickpipe.dashboard import chart, fragments
from tickpipe.dashboard.boxes import boxes, completeness, headline
from tickpipe.dashboard.history import ChartData, Interval, with_ticks
from tickpipe.dashboard.quotes import Quote
from tickpipe.dashboard.server import pipeline_query
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.consumers import ConsumerTracker
from tickpipe.inspect.rates import Rate
from tickpipe.inspect.snapshot import Candle, Consumer, DatabaseInfo, Gap, Session, Snapshot, StoredCount, Tick
from tickpipe.inspect.symbols import MINUTES, NewestTick

MINUTE = Interval("1m", 60)
NOON = 1_795_348_800.0  # seconds since 1970, a whole minute


def candle(minute: int, close: float = 2.0, ticks: int = 5) -> Candle:
    return Candle(NOON + 60 * minute, 1.0, 3.0, 0.5, close, ticks, 7.0)


def tick(second: float, price: float) -> Tick:
    return Tick(NOON + second, NOON + second, price, None, None, 1, int(second))


# --- Candles continued by ticks


def test_newest_candle_follows_new_ticks_and_ignores_known_ones() -> None:
    moved = with_ticks([candle(0), candle(1)], [tick(70, 9.0), tick(65, 0.1), tick(59, 50.0)], 60)
    assert moved == [candle(0), candle(1)._replace(high=9.0, low=0.1, close=9.0)]
    assert with_ticks(moved, [tick(70, 9.0)], 60) == moved


def test_tick_of_a_new_minute_starts_a_candle() -> None:
    moved = with_ticks([candle(0)], [tick(125, 5.0), tick(120, 4.0), tick(61, 3.0)], 60)
    assert moved[1:] == [
        Candle(NOON + 60, 3.0, 3.0, 3.0, 3.0, 1, None),
        Candle(NOON + 120, 4.0, 5.0, 4.0, 5.0, 2, None),
    ]


def test_ticks_without_history_make_candles() -> None:
    assert with_ticks([], [tick(3, 5.0)], 60) == [Candle(NOON, 5.0, 5.0, 5.0, 5.0, 1, None)]
    assert with_ticks([], [], 60) == []


# --- The axis


def axis(candles: list[Candle], gaps: list[Gap], now: float, most: int = 100) -> list[chart.Slot]:
    return [slot for slot in chart.slots(candles, gaps, 60, most, now) if slot.start >= candles[0].start]


def test_quiet_time_takes_no_space_and_a_gap_does() -> None:
    candles = [candle(0), candle(5)]
    now = NOON + 330
    assert [slot.candle for slot in axis(candles, [], now)] == candles
    blind = axis(candles, [Gap(NOON + 60, NOON + 300, "disconnected")], now)
    assert [slot.start - NOON for slot in blind] == [0, 60, 120, 180, 240, 300]
    assert [slot.candle for slot in blind] == [candles[0], None, None, None, None, candles[1]]


def test_long_gap_is_compressed_and_times_in_it_have_positions() -> None:
    gap = Gap(NOON + 60, NOON + 60_060, "stopped")
    found = axis([candle(0), candle(1001)], [gap], NOON + 60_070)
    assert len(found) == 1 + chart.MAX_GAP_SLOTS + 1
    assert chart.position(found, gap.since) == 1
    assert chart.position(found, NOON + 30_060) == pytest.approx(1 + chart.MAX_GAP_SLOTS / 2)
    assert chart.position(found, gap.until or 0) == 1 + chart.MAX_GAP_SLOTS


def test_open_gap_extends_to_now() -> None:
    gap = Gap(NOON + 50, None, "disconnected: reset")
    found = axis([candle(0)], [gap], NOON + 200)
    assert len(found) == 4
    ((since, until, _),) = chart.areas(found, [gap], NOON + 200)
    assert [since, until] == pytest.approx([50 / 60, 200 / 60])


def test_short_gap_is_visible_and_a_gap_before_the_chart_is_not() -> None:
    found = axis([candle(0), candle(1)], [], NOON + 100)
    short, before = Gap(NOON + 90, NOON + 90.5, "x"), Gap(NOON - 90, NOON - 50, "y")
    ((since, until, gap),) = chart.areas(found, [before, short], NOON + 100)
    assert gap is short
    assert until - since == pytest.approx(chart.MIN_GAP_WIDTH)


def test_few_candles_are_right_aligned_and_excess_is_cut_left() -> None:
    few = chart.slots([candle(0)], [], 60, 150, NOON + 30)
    assert len(few) == chart.MIN_SLOTS
    assert few[-1].candle == candle(0)
    assert chart.slots([candle(n) for n in range(99)], [], 60, 50, NOON)[0].candle == candle(49)
    assert chart.slots([], [], 60, 150, NOON) == []


def test_data_are_merged_into_the_axes() -> None:
    found = chart.slots([candle(0), candle(1)], [], 60, 150, NOON + 100)
    changes = chart.data(found, [], 2, NOON + 100)
    whole: dict[str, Any] = chart.merged(chart.options("BTC/USD", MINUTE, 2), changes)
    candles, bars, gaps = whole["series"]
    assert candles["type"] == "candlestick"
    assert candles["data"][-1] == [1.0, 2.0, 0.5, 3.0]  # ECharts' order: open, close, low, high
    assert bars["data"][-1]["value"] == 7.0
    assert bars["name"] == "volume"
    assert gaps["markArea"]["data"] == []
    assert whole["xAxis"][0]["data"][-1] == "2026-11-22T12:01:00+00:00"
    assert whole["xAxis"][2]["max"] == chart.MIN_SLOTS
    assert [len(axes) for axes in (whole["xAxis"], whole["yAxis"])] == [3, 3]


def test_bars_show_ticks_if_the_feed_has_no_volume() -> None:
    found = chart.slots([candle(0)._replace(volume=None)], [], 60, 150, NOON)
    bars = chart.data(found, [], 2, NOON)["series"][1]
    assert (bars["name"], bars["data"][-1]["value"]) == ("ticks", 5)


@pytest.mark.parametrize(
    ("volumes", "top"), [([5, 7, 90], 1.2 * 7), ([5, 7, 20], None), ([5, 90], None), ([0, 0, 9], None)]
)
def test_outlier_volume_bar_is_clipped(volumes: list[float], top: float | None) -> None:
    candles = [candle(n)._replace(volume=volume) for n, volume in enumerate(volumes)]
    assert chart.data(chart.slots(candles, [], 60, 150, NOON), [], 2, NOON)["yAxis"][1]["max"] == top


def test_long_prices_fit_beside_the_chart() -> None:
    rupiah = candle(0)._replace(open=1.5e9, high=1.6e9, low=1.4e9, close=1.5e9)
    rooms = [
        chart.data(chart.slots([one], [], 60, 150, NOON), [], 2, NOON)["grid"][0]["right"]
        for one in (candle(0), rupiah)
    ]
    assert rooms == [74, 122]


# --- Quotes


def test_quote_keeps_recent_minutes_and_their_change() -> None:
    quote = Quote("A", 10.0, NOON, NOON, 2, {int(NOON // 60): 10.0})
    quote = quote.with_past({int(NOON // 60) - 1: 8.0, int(NOON // 60): 9.0})
    assert list(quote.closes.values()) == [8.0, 10.0]
    assert quote.change == pytest.approx(0.25)
    later = quote.with_tick(NewestTick("A", 12.5, NOON + 60 * (MINUTES - 1), NOON))
    assert list(later.closes.values()) == [10.0, 12.5]
    assert later.decimals == 2
    assert later.with_tick(NewestTick("A", 12.125, later.time, NOON)).decimals == 3
    assert Quote("A", 0.0, NOON, NOON, 2, {1: 0.0}).change is None
    assert Quote("OIL", -30.0, NOON, NOON, 2, {1: -40.0}).change == pytest.approx(0.25)  # it rose


# --- Boxes of the pipeline


def session(**other: Any) -> Session:
    fields = {"id": int(NOON * 1e6), "feed": "twelvedata", "last_reported_at": NOON, "stopped": False}
    fields |= {"connection": "connected", "cause": "", "last_seq": 100, "verified": False}
    return Session(**{**fields, **other})


HEALTHY = Snapshot(
    at=NOON + 2,
    group="timescale",
    backlog=Backlog(1000, 50, 3, 2, 2),
    groups={"timescale": Backlog(1000, 50, 3, 2, 2)},
    received_rate=20.0,
    stored_rate=19.5,
    consumers=[Consumer("a", 2, 0.3, 19.5, "active")],
    sessions=[session()],
    database=DatabaseInfo("PostgreSQL 18.6", 12_400_000, 0),
)


def with_(**other: Any) -> Snapshot:
    return replace(HEALTHY, **other)


def test_healthy_pipeline_is_all_green() -> None:
    websocket, stream, consumers, database = boxes(HEALTHY)
    assert [box.state for box in boxes(HEALTHY)] == ["good"] * 4
    assert (websocket.figure, stream.figure, consumers.figure, database.figure) == ("20.0", "5", "1", "19.5")
    assert database.lines == ("no dead letters", "PostgreSQL 18.6 · 12.4 MB")
    assert headline(HEALTHY) == ("good", "all is well")


LAGGARD = {"timescale": Backlog(9, 9, 3, 2, 2), "slow": Backlog(9, 9, 9, 0, 1)}
LAGGARD = {"timescale": Backlog(9, 9, 3, 2, 2), "slow": Backlog(9, 9, 9, 0, 1)}
FAULTS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"sessions": []}, 0, "idle", "no producer yet"),
    ({"sessions": [session(stopped=True)]}, 0, "idle", "producer stopped 2 s ago"),
    ({"sessions": [session(last_reported_at=NOON - 60)]}, 0, "bad", "no report from the producer for 62 s"),
    ({"sessions": [session(last_reported_at=NOON - 60)], "consumers": []}, 0, "idle", "unknown"),
    ({"sessions": [session(last_reported_at=NOON - 60)], "redis_error": "refused"}, 0, "idle", "unknown"),
    ({"sessions": [session(last_reported_at=NOON - 60)], "database_error": "refused"}, 0, "idle", "unknown"),
    ({"sessions": [session(connection="disconnected", cause="reset")]}, 0, "bad", "disconnected"),
    ({"sessions": [session(), session(connection="disconnected")]}, 0, "bad", "disconnected"),
    ({"redis_error": "Redis: refused"}, 1, "bad", "cannot be read"),
    ({"backlog": None}, 1, "idle", "nothing read yet"),
    ({"backlog": Backlog(9, 9, 5000, 0, 1)}, 1, "warn", "5,000 unread · 0 pending"),
    ({"groups": LAGGARD}, 1, "warn", "3 unread · 2 pending"),
    ({"consumers": [Consumer("a", 7, 5.0, 0.0, "idle")]}, 2, "bad", "1 stopped, 7 pending"),
    ({"consumers": [Consumer("a", 0, 5.0, 0.0, "gone")]}, 2, "bad", "1 stopped"),
    ({"consumers": []}, 2, "bad", "no consumer"),
    ({"consumers": [], "backlog": Backlog(9, 0, 0, 0, 0)}, 2, "idle", "no consumer"),
    ({"database_error": "the database: refused"}, 3, "bad", "cannot be read"),
    ({"database": DatabaseInfo("PostgreSQL 18.6", 1, 1000)}, 3, "warn", "1,000+ dead letters"),
    ({"database": None}, 3, "idle", "nothing read yet"),
]


@pytest.mark.parametrize(
    ("change", "box", "state", "text"), FAULTS, ids=[f"{row[3]} {row[1]} {', '.join(row[0])}" for row in FAULTS]
)
def test_each_fault_is_shown_in_its_box(change: dict[str, Any], box: int, state: str, text: str) -> None:
    found = boxes(with_(**change))[box]
    assert (found.state, found.lines[0]) == (state, text)
    if state in {"bad", "warn"}:
        assert headline(with_(**change))[0] == state


def test_producer_is_not_blamed_for_reports_that_could_not_be_stored() -> None:
    stopped = [Consumer("a", 7, 20.0, 0.0, "idle")]
    assert headline(with_(sessions=[session(last_reported_at=NOON - 20)], consumers=stopped)) == (
        "bad",
        "consumers: 1 stopped, 7 pending",
    )


def test_rate_covers_the_last_seconds() -> None:
    rate = Rate().update
    assert rate(0.0, 100) == 0
    assert [rate(float(second), 100 + 10 * second) for second in range(1, 9)] == [10.0] * 8
    assert [rate(float(second), 180) for second in range(9, 14)][-1] == 0
    assert rate(14.0, 5) == 0  # the counter was reset
    assert rate(15.0, 7) == 2


def test_stopped_consumer_is_idle_then_gone_then_forgotten() -> None:
    tracker = ConsumerTracker()

    def states(now: float, *members: Member) -> list[tuple[str, str]]:
        return [(one.name, one.state) for one in tracker.update(now, members, {"a": 10 * int(now)})]

    assert states(0, Member("a", 0, 0.5), Member("b", 3, 0.1)) == [("a", "active"), ("b", "active")]
    assert states(5, Member("a", 0, 0.5), Member("b", 3, 5.0)) == [("a", "active"), ("b", "idle")]
    assert states(9, Member("a", 0, 0.5)) == [("a", "active"), ("b", "gone")]
    assert states(10) == [("b", "gone")]  # a was not idle: it has left by itself
    assert states(80) == []


def test_returning_consumer_is_not_gone() -> None:
    tracker = ConsumerTracker()
    tracker.update(0, [Member("a", 0, 9.0)], {})
    tracker.update(1, [], {})
    assert [one.state for one in tracker.update(2, [Member("a", 0, 0.1)], {})] == ["active"]


COMPLETE: list[tuple[Session, tuple[str, str]]] = [
    (session(verified=True), ("good", "complete, verified")),
    (session(), ("idle", "not verified yet")),
    (session(counted=StoredCount(0, 0, 0)), ("idle", "just started")),
    (session(counted=StoredCount(100, 100, 0)), ("good", "complete so far")),
    (session(counted=StoredCount(100, 100, 0), stopped=True), ("good", "complete, counted")),
    (session(counted=StoredCount(100, 96, 4)), ("idle", "4 waiting")),
    (session(counted=StoredCount(100, 95, 4)), ("bad", "5 not found: run tickpipe verify")),
]


@pytest.mark.parametrize(("one", "expected"), COMPLETE, ids=[row[1][1] for row in COMPLETE])
def test_session_completeness_is_shown(one: Session, expected: tuple[str, str]) -> None:
    assert completeness(one, NOON + 1) == expected


# --- HTML and formats


def test_external_text_is_escaped() -> None:
    nasty = "<b>&"
    snapshot = with_(consumers=[Consumer(nasty, 0, 0, 0, "active")], sessions=[session(feed=nasty)])
    box = boxes(with_(sessions=[session(connection="disconnected", cause=nasty)]))[0]
    for html in (fragments.members(snapshot.consumers), fragments.sessions(snapshot), fragments.lines(box)):
        assert "&lt;b&gt;&amp;" in html
        assert nasty not in html


def test_tick_table_and_facts_show_available_data() -> None:
    quote = Quote("A", 2.0, NOON, NOON, 2, {})
    data = ChartData([candle(0)], [], [tick(1.25, 2.0)])
    assert "<td>12:00:01<small>.250</small></td><td>2.00</td><td>–</td><td>–</td>" in fragments.ticks(data.ticks, 2)
    assert "high <b>3.00</b>" in fragments.facts(quote, data, NOON + 3)
    assert fragments.facts(quote, ChartData([], [], []), NOON + 3) == "<span>age <b>3 s</b></span>"


def test_gaps_are_described() -> None:
    assert fragments.gaps([]) == "no gap in this chart"
    assert fragments.gaps([Gap(NOON, NOON + 7, "stopped")]) == "1 gap: 22 Nov 12:00:00, 7 s (stopped)"
    assert (
        fragments.gaps([Gap(0, 1, ""), Gap(NOON, None, "x")])
        == "2 gaps, the newest: no prices since 22 Nov 12:00:00 (x)"
    )


@pytest.mark.parametrize(
    ("prices", "places"),
    [([1.5, 2.25], 2), ([228.50999], 2), ([96_312.123], 2), ([1.05412], 5), ([7.0], 0), ([1.23e-10], 12), ([], 2)],
)
def test_decimals_follow_the_feed_within_limits(prices: list[float], places: int) -> None:
    assert formatting.decimals(prices) == places


def test_numbers_are_formatted_for_the_page() -> None:
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


# --- Cached queries


class SlowQuery:
    """A query that returns how often it ran, each time after `took` seconds by its own clock."""

    def __init__(self) -> None:
        self.now, self.took, self.runs = 0.0, 0.0, 0
        self.cached = CachedQuery(self._run, 1.0, lambda: self.now)

    def _run(self) -> int:
        self.now += self.took
        self.runs += 1
        return self.runs

    def at(self, now: float, took: float = 0.0) -> int:
        """The result at that time."""
        self.now, self.took = now, took
        return self.cached()


def test_query_result_is_cached_and_a_slow_one_longer() -> None:
    query = SlowQuery()
    assert (query.at(0.0), query.at(0.0)) == (1, 1)
    assert query.at(1.0, took=0.5) == 2  # at 1.5, after half a second: a single slow run does not count
    assert query.at(2.5, took=0.5) == 3  # at 3.0, slow again: the pause is 20 times its duration
    assert query.at(12.9) == 3
    assert query.at(13.0) == 4


def test_one_stall_does_not_extend_the_cache_for_minutes() -> None:
    query = SlowQuery()
    assert query.at(0.0) == 1
    assert query.at(1.0, took=15.0) == 2  # the database hangs, then recovers
    assert query.at(17.0) == 3


def test_health_is_checked_immediately_after_an_outage() -> None:
    now = 0.0
    stream, database = Mock(group="timescale"), Mock()

    def wait(*_: object, **__: object) -> None:
        nonlocal now
        now += 5.0
        raise OutageError("Redis: Timeout")

    stream.groups.side_effect = database.rows.side_effect = wait
    query = pipeline_query(Mock(single=stream, prices=lambda: [stream]), database, lambda: now)
    for readings in (1, 2, 3):
        assert query().redis_error == "Redis: Timeout"
        assert stream.groups.call_count == readings
        now += 1.0


# --- The optional extra and the address


def test_port_in_use_is_refused_and_up_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard.listen(dashboard.HOST, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"cannot listen on 127.0.0.1 port {port}: .* in use; choose another --port"
        ):
            dashboard.listen(dashboard.HOST, port)
        monkeypatch.setattr(dashboard, "PORT", port)
        assert dashboard.free_port() != port
    assert dashboard.free_port() == port


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nosuch.invalid", "127.0.0.1:8080"])
def test_foreign_host_error_does_not_suggest_another_port(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--host must be an address of this machine") as refused:
        dashboard.listen(host, 0)
    assert "--port" not in str(refused.value)
    assert "while attempting" not in str(refused.value)
