"""Computes figures, tables and JSON from a benchmark's samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

#: Result of one run of one case: metric → value.
Sample = Mapping[str, float]
#: Case → its samples, one per round.
Samples = Mapping[str, Sequence[Sample]]


class Metric(NamedTuple):
    """Column title and number format of a metric."""

    title: str
    form: str


METRICS = {
    "rate": Metric("events/s", "{:,.0f}"),
    "cpu": Metric("client CPU, µs/event", "{:.1f}"),
    "redis": Metric("Redis CPU, µs/event", "{:.1f}"),
    "consumer": Metric("consumer CPU, µs/event", "{:.1f}"),
    "peak": Metric("peak memory, MiB", "{:,.0f}"),
    "swing": Metric("memory, max − min after warm-up, MiB", "{:,.1f}"),
    "dropped": Metric("dropped", "{:,.0f}"),
    "p50": Metric("p50, ms", "{:.1f}"),
    "p95": Metric("p95, ms", "{:.1f}"),
    "p99": Metric("p99, ms", "{:.1f}"),
    "flush": Metric("mean WAL flush (included), ms", "{:.1f}"),
}


class Figure(NamedTuple):
    """Median, lowest and highest value of the rounds."""

    median: float
    low: float
    high: float


class Commit(NamedTuple):
    """A transaction: commit time (seconds since 1970) and number of rows."""

    at: float
    rows: int


class Ratio(NamedTuple):
    """A metric of one case divided by that of another, in one part."""

    part: str
    metric: str
    ours: str
    other: str


def figure(values: Sequence[float]) -> Figure:
    """Median and spread of at least one value."""
    return Figure(median(values), min(values), max(values))


def ratio(ours: Sequence[float], other: Sequence[float]) -> Figure:
    """Median and spread of the ratios of each round. A slow round affects both sides alike."""
    return figure([one / two for one, two in zip(ours, other, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def rate(commits: Sequence[Commit]) -> float:
    """Rows per second from the first commit to the last, without the first commit's rows."""
    ordered = sorted(commits)
    seconds = ordered[-1].at - ordered[0].at
    return sum(commit.rows for commit in ordered[1:]) / seconds


def swing(memory: Sequence[tuple[float, int]], warm_up: float = 0.25) -> int:
    """Highest minus lowest resident memory, bytes, after a share `warm_up` of the time."""
    begin = memory[-1][0] * warm_up
    sizes = [size for at, size in memory if at >= begin]
    return max(sizes) - min(sizes)


def series(samples: Samples, case: str, metric: str) -> list[float]:
    """One metric of one case, by round. Empty if the case does not have the metric."""
    return [sample[metric] for sample in samples.get(case, []) if metric in sample]


def ratios(results: Mapping[str, Samples], wanted: Iterable[Ratio]) -> list[tuple[Ratio, Figure]]:
    """The wanted ratios for which the results have both sides."""
    found = []
    for each in wanted:
        samples = results.get(each.part, {})
        ours, other = series(samples, each.ours, each.metric), series(samples, each.other, each.metric)
        if ours and len(ours) == len(other):
            found.append((each, ratio(ours, other)))
    return found


def columns(samples: Samples) -> list[str]:
    """The metrics that the samples have, in the order of METRICS."""
    present = {name for rounds in samples.values() for sample in rounds for name in sample}
    return [name for name in METRICS if name in present]


def table(samples: Samples) -> list[list[str]]:
    """Rows of text, titles first: the case, then median and spread of each metric."""
    names = columns(samples)
    rows = [["", *(METRICS[name].title for name in names)]]
    rows += [[case, *(cell(series(samples, case, name), METRICS[name].form) for name in names)] for case in samples]
    return rows


def cell(numbers: Sequence[float], form: str) -> str:
    """The median, and its spread if there is one."""
    if not numbers:
        return "–"
    found = figure(numbers)
    text = form.format(found.median)
    low, high = form.format(found.low), form.format(found.high)
    return text if low == high else f"{text} ({low}–{high})"


def as_json(
    results: Mapping[str, Samples], wanted: Iterable[Ratio], machine: Mapping[str, object]
) -> dict[str, object]:
    """All results in the form of results/latest.json."""
    return {
        "machine": dict(machine),
        "ratios": [
            {**each._asdict(), **_rounded(found)} for each, found in ratios(results, wanted)
        ],
        "parts": {
            part: {
                case: {
                    name: {**_rounded(figure(found)), "rounds": [_round(value) for value in found]}
                    for name in columns({case: rounds})
                    if (found := series(samples, case, name))
                }
                for case, rounds in samples.items()
            }
            for part, samples in results.items()
        },
    }  # fmt: skip


def _rounded(found: Figure) -> dict[str, float]:
    return {name: _round(value) for name, value in found._asdict().items()}


def _round(value: float) -> float:
    """Round to four digits, which is more than two runs agree on."""
    return float(f"{value:.4g}")
