"""The computations of `make bench` from its samples, without servers and timing."""

from __future__ import annotations

import json
from itertools import islice
from xml.etree import ElementTree

import pytest

from benchmarks import report, ticks
from benchmarks.blaster import accept_key, chunks, split
from benchmarks.pages import PAGES, ROOT, with_figures
from benchmarks.peers import copy_rows, rows, tutorial
from benchmarks.picture import Bar, Group, svg
from benchmarks.plan import QUICK, Case, Scale, turns
from benchmarks.report import Commit, Figure, Ratio
from common import tick

SAMPLES = {
    "ours": [{"rate": 300.0, "cpu": 5.0}, {"rate": 100.0, "cpu": 7.0}, {"rate": 200.0, "cpu": 6.0}],
    "other": [{"rate": 100.0}, {"rate": 50.0}, {"rate": 200.0}],
}
RATIO = Ratio("sink", "rate", "ours", "other")
ENTRY = {name.encode(): value.encode() for name, value in next(ticks.entries(1)).items()}


def test_figure_is_the_median_and_its_spread() -> None:
    assert report.figure([3, 1, 2]) == Figure(2, 1, 3)
    assert report.figure([4]) == Figure(4, 4, 4)


def test_ratio_is_taken_round_by_round() -> None:
    assert report.ratio([300, 100, 200], [100, 50, 200]) == Figure(2, 1, 3)


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 50), (95, 95), (99, 99), (100, 100)])
def test_percentile_is_the_nearest_rank(percent: float, value: float) -> None:
    assert report.percentile([*range(100, 0, -1)], percent) == value


def test_percentile_of_one_value_is_that_value() -> None:
    assert report.percentile([7], 99) == 7


def test_rate_leaves_out_what_was_written_before_the_first_commit() -> None:
    assert report.rate([Commit(12.0, 30), Commit(10.0, 1000), Commit(11.0, 10)]) == 20


def test_swing_begins_after_the_warm_up() -> None:
    assert report.swing([(0.0, 10), (1.0, 90), (2.0, 100), (4.0, 97)], warm_up=0.5) == 3


def test_ratios_without_both_sides_are_left_out() -> None:
    wanted = [RATIO, RATIO._replace(metric="cpu"), RATIO._replace(part="feed"), RATIO._replace(other="nobody")]
    assert report.ratios({"sink": SAMPLES}, wanted) == [(RATIO, Figure(2, 1, 3))]


def test_table_has_medians_and_spreads() -> None:
    assert report.table(SAMPLES) == [
        ["", "events/s", "client CPU, µs/event"],
        ["ours", "200 (100–300)", "6.0 (5.0–7.0)"],
        ["other", "100 (50–200)", "–"],
    ]


def test_cell_without_a_spread_shows_the_median() -> None:
    assert report.cell([5.01, 5.02], "{:.1f}") == "5.0"


def test_json_holds_figures_rounds_and_machine() -> None:
    told = json.loads(json.dumps(report.as_json({"sink": SAMPLES}, [RATIO], {"cores": 2})))
    assert told["machine"] == {"cores": 2}
    assert told["ratios"] == [{**RATIO._asdict(), "median": 2, "low": 1, "high": 3}]
    assert told["parts"]["sink"]["ours"]["cpu"] == {"median": 6, "low": 5, "high": 7, "rounds": [5, 7, 6]}
    assert "cpu" not in told["parts"]["sink"]["other"]


def test_turns_alternate_direction() -> None:
    cases = [Case(name, 1, lambda _: {}) for name in "abc"]
    assert [(number, case.name) for number, case in turns(cases, 2)] == [
        (0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a"),
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [Scale(), QUICK])
def test_tutorial_peer_stores_all_events(scale: Scale) -> None:
    assert scale.events % tutorial.BATCH_SIZE == 0  # an incomplete batch is kept


def test_picture_is_valid_and_its_longest_bar_fits() -> None:
    bars = [Bar("tickpipe <3", 200, 150, 250, ours=True), Bar("other", 100, 100, 100, ours=False)]
    drawn = ElementTree.fromstring(svg([Group("events & more", bars)], "a note"))  # noqa: S314  our own text
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["events & more", "tickpipe <3", "200", "other", "100", "a note"]
    widths = [float(rect.get("width", 0)) for rect in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] == pytest.approx(2 * widths[2])
    assert max(widths) <= 820


def test_entries_match_the_contract_and_continue_numbering() -> None:
    found = list(ticks.entries(30, first=10))
    assert found[0] == list(ticks.entries(11))[-1]
    assert [int(fields["seq"]) for fields in found] == list(range(11, 41))
    for fields in found:
        assert tuple(fields) == tick.Tick._fields[:10]
        assert tick.validation_error(tick.Tick(**fields)) is None


def test_entries_repeat_after_the_generated_prices() -> None:
    last = list(islice(ticks.entries(3, first=20_000 - 1), 3))
    assert [int(fields["time"]) - ticks.BEGIN for fields in last] == [39, 40, 40]


def test_joined_frames_are_split() -> None:
    frames = [ticks.frame(b"x" * size) for size in (0, 125, 126, 300, 65_535)]
    assert list(split(b"".join(frames))) == frames


def test_chunks_contain_whole_frames() -> None:
    assert list(chunks([b"aaa", b"bb", b"c", b"dddd", b"e"], 5)) == [b"aaabb", b"cdddd", b"e"]


def test_handshake_follows_rfc_6455() -> None:
    assert accept_key(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3


def test_peers_build_the_same_row() -> None:
    row = rows.row({name.decode(): value.decode() for name, value in ENTRY.items()})
    event = tutorial.event(ENTRY)
    assert row[2:6] == (event["symbol"], event["timestamp"], event["price"], event.get("day_volume"))
    assert row[9] == pytest.approx(row[3] + 1 / ticks.MARKET_RATE)
    copied = copy_rows.line(ENTRY).decode().rstrip("\n").split("\t")
    assert copied[:3] == [str(row[0]), str(row[1]), row[2]]
    assert [float(text) for text in copied[4:6]] == [row[4], row[5]]
    assert copied[6:8] == ["\\N", "\\N"]
    assert copied[3] == "2026-05-28 20:26:40+00:00"


def test_batches_are_full_except_the_last() -> None:
    assert list(rows.batches(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize("name", PAGES)
def test_figures_in_the_pages_match_the_last_run(name: str) -> None:
    """`python -m benchmarks.pages` writes them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- figures -->" in text
    assert with_figures(name, text) == text
