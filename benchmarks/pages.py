"""Write the figures of benchmarks/results/latest.json into README.md and docs/performance.md.

`python -m benchmarks.pages` replaces the text between `<!-- figures -->` and `<!-- end of figures -->`. A test checks
that the pages are up to date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LATEST = ROOT / "benchmarks" / "results" / "latest.json"
#: The column heading and the number format of each measure.
COLUMNS = {
    "rate": ("events/s", "{:,.0f}"),
    "cpu": ("client CPU, µs/event", "{:.1f}"),
    "redis": ("Redis CPU, µs/event", "{:.1f}"),
    "consumer": ("consumer CPU, µs/event", "{:.1f}"),
    "peak": ("peak memory, MiB", "{:.0f}"),
    "swing": ("memory, max − min after warm-up, MiB", "{:.1f}"),
    "dropped": ("dropped", "{:,.0f}"),
    "p50": ("p50, ms", "{:.1f}"),
    "p95": ("p95, ms", "{:.1f}"),
    "p99": ("p99, ms", "{:.1f}"),
}
#: The ratios in README: part, tickpipe's variant, the variant compared with.
README_RATIOS = [
    ("sink", "tickpipe consumer, batches of 1000", "redis-py + execute_values, 1000"),
    ("sink", "tickpipe consumer, batches of 1000", "FastStream + execute_values, 1000"),
    ("sink", "tickpipe consumer, batches of 5000", "tutorial: memory, no key, 4 columns, 100"),
    ("feed", "tickpipe producer, appended to the stream", "vendor's wrapper, callback empty"),
]


def performance(results: dict[str, Any]) -> str:
    """All figures: one table for each part, then the ratios."""
    machine = results["machine"]
    summary = (
        f"Measured {machine['taken'][:10]} on {machine['cores']} cores of an {machine['processor']} "
        f"({machine['database']}, Valkey with the protocol of Redis {machine['redis']}). "
        "Each figure is the median of the rounds; lowest and highest are in brackets."
    )
    lines = [summary]
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
    """The figures of README."""
    lines = []
    for part, ours, other in README_RATIOS:
        (ratio,) = [
            each
            for each in results["ratios"]
            if (each["part"], each["ours"], each["other"], each["metric"]) == (part, ours, other, "rate")
        ]
        lines.append(f"- {ours.removeprefix('tickpipe ')}: {ratio['median']:.1f} × {other}")
    latency = results["parts"]["latency"]["1,000 events/s"]
    summary = (
        f"Latency from receipt to commit at 1,000 events/s: median {latency['p50']['median']:.1f} ms, p99 "
        f"{latency['p99']['median']:.1f} ms. Measured by `make bench` on {results['machine']['cores']} cores."
    )
    return "\n".join([*lines, "", summary])


def _cell(figure: dict[str, float], form: str) -> str:
    median, low, high = (form.format(figure[name]) for name in ("median", "low", "high"))
    return median if low == high else f"{median} ({low}–{high})"


PAGES = {"README.md": front, "docs/performance.md": performance}
_FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def with_figures(name: str, text: str) -> str:
    """The page with the figures of the latest full run."""
    results = json.loads(LATEST.read_text(encoding="utf-8"))
    return _FIGURES.sub(lambda found: f"{found[1]}\n{PAGES[name](results)}\n\n{found[2]}", text)


if __name__ == "__main__":
    for each in PAGES:
        path = ROOT / each
        path.write_text(with_figures(each, path.read_text(encoding="utf-8")), encoding="utf-8")
