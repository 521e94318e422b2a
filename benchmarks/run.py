"""Compares tickpipe with other software at the same work, in one run on one machine: `make bench`.

No threshold makes it fail. A full run writes benchmarks/results/latest.json and docs/bench.svg. A run with `--quick` or
`--only` writes benchmarks/results/partial.json.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import psutil
import typer
from playwright.sync_api import Browser
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import append, channels, dashboard, feed, growth, latency, reading, sink, year
from benchmarks.clients import Blaster
from benchmarks.picture import Bar, Group, svg
from benchmarks.plan import QUICK, Part, Scale, turns
from benchmarks.report import METRICS, Ratio, Sample, Samples, as_json, cell, figure, ratios, series, table
from benchmarks.servers import DATABASE, ROOT, Bench, bench
from common import cli
from common.errors import ConfigurationError
from tests.support.browser import find_program, launched
from tests.support.folders import temporary_folder
from tests.support.redis_nodes import FailoverPair, failover_pair

RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "bench.svg"
PARTS = ("sink", "feed", "append", "latency", "growth", "channels", "year", "reading", "dashboard")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure less, in under two minutes. Figures vary more.")
    ] = False,
    only: Annotated[str, typer.Option(help=f"Comma-separated parts: {','.join(PARTS)}.")] = ",".join(PARTS),
) -> None:
    """Measure, print tables of medians, spreads and ratios, and write them as JSON.

    Uses embedded servers, or those of REDIS_URL and DATABASE_URL. There it creates databases named tickpipe_bench… and
    streams named tickpipe-bench…, and removes them at the end.
    """
    names = only.split(",")
    if unknown := set(names) - set(PARTS):
        raise ConfigurationError(f"--only {','.join(sorted(unknown))}: expected some of {','.join(PARTS)}")
    scale = QUICK if quick else Scale()
    wanted = [
        *sink.RATIOS,
        *feed.RATIOS,
        *append.RATIOS,
        *growth.ratios(scale),
        *channels.RATIOS,
        *year.RATIOS,
        *reading.RATIOS,
        *dashboard.RATIOS,
    ]
    console = Console(width=None if sys.stdout.isatty() else 150)
    with temporary_folder() as folder, bench(folder) as found, ExitStack() as stack:
        results = measure(_parts(names, found, scale, stack), console)
        facts = machine(found)
    show(console, results, wanted)
    whole = not quick and set(names) == set(PARTS)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("latest.json" if whole else "partial.json")
    path.write_text(json.dumps(as_json(results, wanted, {**facts, "quick": quick}), indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {path.relative_to(ROOT)}")
    if whole:
        PICTURE.write_text(picture(results, facts), encoding="utf-8")
        console.print(f"written: {PICTURE.relative_to(ROOT)}")


def _parts(names: list[str], found: Bench, scale: Scale, stack: ExitStack) -> list[Part]:
    @cache
    def blaster() -> Blaster:
        server = feed.write_frames(found, scale)
        stack.callback(server.stop)
        return server

    @cache
    def symbols(number: int) -> Blaster:
        server = channels.frames(found, scale.channel_events, number)
        stack.callback(server.stop)
        return server

    @cache
    def browser() -> Browser:
        program = find_program()
        if program is None:
            raise ConfigurationError(
                f"Chromium or Chrome not found. Without a browser, use --only {','.join(PARTS[:-1])}."
            )
        return stack.enter_context(launched(program))

    @cache
    def nodes() -> FailoverPair:
        return stack.enter_context(failover_pair())

    if "dashboard" in names:
        browser()  # fails before the measurement starts
    parts = {
        "sink": [sink.part(found, scale)],
        "feed": [feed.part(found, scale, blaster)],
        "append": [append.part(scale, nodes)],
        "latency": [latency.part(found, scale, blaster)],
        "growth": [growth.part(found, scale), growth.backlog_part(found, scale)],
        "channels": [channels.part(found, scale, symbols)],
        "year": [year.part(found, scale)],
        "reading": [reading.part(found, scale)],
        "dashboard": [dashboard.part(found, scale, browser)],
    }
    return [part for name in PARTS if name in names for part in parts[name]]


def measure(parts: list[Part], console: Console) -> dict[str, Samples]:
    """Run all parts with a progress bar."""
    results: dict[str, dict[str, list[Sample]]] = {part.name: {case.name: [] for case in part.cases} for part in parts}
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=console, speed_estimate_period=600, refresh_per_second=1) as progress:
        task = progress.add_task("", total=sum(_seconds(part) for part in parts))

        def show_step(text: str) -> None:
            progress.update(task, description=text)
            if not console.is_terminal:  # without a progress bar
                console.print(text)

        for part in parts:
            for preparation in part.preparations:
                show_step(f"{part.name}: {preparation.name}")
                preparation.run()
                progress.advance(task, preparation.seconds)
            for number, case in turns(part.cases, part.rounds):
                show_step(f"{part.name}, round {number + 1} of {part.rounds}: {case.name}")
                results[part.name][case.name].append(case.run(number))
                progress.advance(task, case.seconds)
    return dict(results)


def _seconds(part: Part) -> float:
    return sum(each.seconds for each in part.preparations) + part.rounds * sum(case.seconds for case in part.cases)


def machine(found: Bench) -> dict[str, object]:
    """Machine, servers and package versions of this run."""
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_after": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "redis": f"{found.redis.info()['redis_version']}",
        "database": found.query(DATABASE, "SELECT version()")[0][0].partition(" on ")[0],
        "packages": {
            name: version(name)
            for name in (
                "redis",
                "hiredis",
                "psycopg2-binary",
                "adbc-driver-postgresql",
                "pandas",
                "faststream",
                "twelvedata",
                "websocket-client",
            )
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(console: Console, results: dict[str, Samples], wanted: list[Ratio]) -> None:
    """Print the tables."""
    for part, samples in results.items():
        titles, *rows = table(samples)
        _print(console, f"{part}: median of the rounds (lowest–highest)", titles, rows)
    rows = [
        [each.part, each.ours, "÷", each.other, METRICS[each.metric].title, cell([*found], "{:.2f}")]
        for each, found in ratios(results, wanted)
    ]
    if rows:
        _print(console, "ratios, round by round", ["", "", "", "", "", "ratio"], rows)


def _print(console: Console, title: str, titles: list[str], rows: list[list[str]]) -> None:
    shown = Table(title=title, title_justify="left")
    for number, text in enumerate(titles):
        shown.add_column(text, justify="left" if number == 0 or not text else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def picture(results: dict[str, Samples], facts: dict[str, object]) -> str:
    """The rates of sink and feed as bars. Each group has its own scale."""
    drains = {case: rounds for case, rounds in results["sink"].items() if case not in sink.FROM_MEMORY}
    inserts = {case: rounds for case, rounds in results["sink"].items() if case in sink.FROM_MEMORY}
    groups = [
        _bars("Websocket, events per second", results["feed"]),
        _bars("Redis stream → database, events per second", drains),
        _bars("Memory → database without a stream, rows per second", inserts),
    ]
    host = f"{facts['cores']} cores, {facts['processor']}"
    note = f"make bench, {str(facts['taken'])[:10]}: medians of alternating rounds on {host}"
    return svg(groups, note)


def _bars(title: str, samples: Samples) -> Group:
    bars = [Bar(case, *figure(series(samples, case, "rate")), ours=case.startswith("tickpipe")) for case in samples]
    return Group(title, sorted(bars, key=lambda bar: -bar.value))


if __name__ == "__main__":
    cli.run(app, "bench")
