"""`python -m benchmarks.pages`: writes the figures of benchmarks/results/latest.json into the pages that show them.

Between `<!-- figures -->` and `<!-- end of figures -->`. A test compares, so that no figure there is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LATEST = ROOT / "benchmarks" / "results" / "latest.json"
#: What each measure is called, and how its figure is written.
COLUMNS = {
    "rate": ("events/s", "{:,.0f}"),
    "cpu": ("client CPU, µs/event", "{:.1f}"),
    "peak": ("peak memory, MiB", "{:.0f}"),
    "swing": ("memory, max − min after warm-up, MiB", "{:.1f}"),
    "dropped": ("dropped", "{:,.0f}"),
    "p50": ("p50, ms", "{:.1f}"),
    "p95": ("p95, ms", "{:.1f}"),
    "p99": ("p99, ms", "{:.1f}"),
}
#: Ratios of the first page: part, ours, other.
README_RATIOS = [
    ("sink", "tickpipe consumer, batches of 1000", "redis-py + execute_values, 1000"),
    ("sink", "tickpipe consumer, batches of 1000", "FastStream + execute_values, 1000"),
    ("sink", "tickpipe consumer, batches of 5000", "tutorial: memory, no key, 4 columns, 100"),
    ("feed", "tickpipe producer, appended to the stream", "vendor's wrapper, callback empty"),
]


def performance(results: dict[str, Any]) -> str:
    """All figures: a table for each part, then the ratios."""
    machine = results["machine"]
    words = (
        f"Taken {machine['taken'][:10]} on {machine['cores']} cores of an {machine['processor']} "
        f"({machine['database']}, Valkey speaking Redis {machine['redis']}). Medians of the rounds, lowest–highest in "
        "brackets."
    )
    lines = [words]
    for part, cases in results["parts"].items():
        measures = [name for name in COLUMNS if any(name in figures for figures in cases.values())]
        heads = [part, *(COLUMNS[name][0] for name in measures)]
        lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for case, figures in cases.items():
            cells = [_cell(figures[name], COLUMNS[name][1]) if name in figures else "–" for name in measures]
            lines.append(f"| {' | '.join([case, *cells])} |")
    lines += ["", "| ours | other | measure | ours ÷ other |", "| --- | --- | --- | --- |"]
    for ratio in results["ratios"]:
        cells = [ratio["ours"], ratio["other"], COLUMNS[ratio["metric"]][0], _cell(ratio, "{:.2f}")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def front(results: dict[str, Any]) -> str:
    """The figures of the first page."""
    lines = ["| | beside | events/s, ours ÷ theirs |", "| --- | --- | --- |"]
    for part, ours, other in README_RATIOS:
        (ratio,) = [
            each
            for each in results["ratios"]
            if (each["part"], each["ours"], each["other"], each["metric"]) == (part, ours, other, "rate")
        ]
        lines.append(f"| {ours} | {other} | {_cell(ratio, '{:.1f}')} |")
    latency = results["parts"]["latency"]["1,000 events/s"]
    words = (
        f"Received → committed at 1,000 events/s: p50 {latency['p50']['median']:.1f} ms, p99 "
        f"{latency['p99']['median']:.1f} ms. `make bench` takes these anew: medians of one run, lowest–highest in "
        f"brackets, on {results['machine']['cores']} cores that clients and servers share."
    )
    return "\n".join([*lines, "", words])


def _cell(figure: dict[str, float], form: str) -> str:
    median, low, high = (form.format(figure[name]) for name in ("median", "low", "high"))
    return median if low == high else f"{median} ({low}–{high})"


PAGES = {"README.md": front, "docs/performance.md": performance}
_FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def with_figures(name: str, text: str) -> str:
    """The page with the figures of the last full run."""
    results = json.loads(LATEST.read_text(encoding="utf-8"))
    return _FIGURES.sub(lambda found: f"{found[1]}\n{PAGES[name](results)}\n\n{found[2]}", text)


if __name__ == "__main__":
    for each in PAGES:
        path = ROOT / each
        path.write_text(with_figures(each, path.read_text(encoding="utf-8")), encoding="utf-8")
