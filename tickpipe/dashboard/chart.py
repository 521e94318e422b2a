"""A symbol's look as options of ECharts. Pure.

Colours are the style sheet's: ECharts draws SVG here, so that the page's theme reaches into the chart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tickpipe import formatting
from tickpipe.inspect.database import Candle, Gap, Interval

#: Places on the axis that a time without any candle takes at most, if it was a gap: more would push the prices out.
MOST_BLIND = 10
#: A gap is drawn at least so wide, in candles.
NARROWEST = 0.3
#: Places that a chart has at least: a few candles do not fill it.
FEWEST = 45
#: What stands right of the chart, in pixels: a price of so many, and more where prices are longer.
ROOM_FOR_PRICE, PER_DIGIT = 74, 6.6
#: Shares of the chart from which on a gap's length, and its cause, are written into it.
ROOM_FOR_LENGTH, ROOM_FOR_CAUSE = 0.05, 0.18

Options = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A place on the axis: from `start` for `seconds`; `candle` is None where it stands for a blind time."""

    start: float
    seconds: float
    candle: Candle | None


class Area(NamedTuple):
    """A gap on the axis: from where to where, in places from its left edge."""

    since: float
    until: float
    gap: Gap


def places(candles: Sequence[Candle], gaps: Sequence[Gap], width: float, most: int, now: float) -> list[Place]:
    """The axis, oldest first. Nights and weekends take no place; what a gap has left out takes some.

    `width`: of a candle, in seconds. `most`: places at most. `now`: seconds since 1970, where a gap that goes on ends.
    """
    axis: list[Place] = []
    for candle in candles:
        if axis:
            axis += _blind(axis[-1].start + width, candle.start, gaps, width, now)
        axis.append(Place(candle.start, width, candle))
    if axis:
        axis += _blind(axis[-1].start + width, now // width * width + width, gaps, width, now)
    if axis:
        axis = [Place(axis[0].start - width * n, width, None) for n in range(FEWEST - len(axis), 0, -1)] + axis
    return axis[-most:]


def _blind(since: float, until: float, gaps: Sequence[Gap], width: float, now: float) -> list[Place]:
    """Places for the span between two candles, where a gap is to blame for most of it."""
    blind = sum(max(0.0, min(until, gap.until or now) - max(since, gap.since)) for gap in gaps)
    if until <= since or blind < (until - since) / 2:
        return []
    count = min(MOST_BLIND, round((until - since) / width))
    step = (until - since) / count
    return [Place(since + number * step, step, None) for number in range(count)]


def position(axis: Sequence[Place], at: float) -> float:
    """Where a time lies on the axis, in places from its left edge; within it, whatever the time."""
    index = bisect_right(axis, at, key=lambda place: place.start) - 1
    if index < 0:
        return 0.0
    return index + min(1.0, (at - axis[index].start) / axis[index].seconds)


def areas(axis: Sequence[Place], gaps: Sequence[Gap], now: float) -> list[Area]:
    """The gaps that the axis reaches."""
    found = []
    for gap in gaps:
        since, until = position(axis, gap.since), position(axis, now if gap.until is None else gap.until)
        if until <= 0 or (gap.until is not None and gap.until <= axis[0].start):
            continue
        if until - since < NARROWEST:
            middle = (since + until) / 2
            since = min(max(0.0, middle - NARROWEST / 2), len(axis) - NARROWEST)
            until = since + NARROWEST
        found.append(Area(since, until, gap))
    return found


def options(symbol: str, interval: Interval, decimals: int) -> Options:
    """The chart without its data: axes, colours, what the pointer shows."""
    label = {"color": "var(--muted)", "fontSize": 11, "fontFamily": "inherit"}
    line = {"lineStyle": {"color": "var(--line)"}}
    hidden = {"show": False}
    pointer = {"lineStyle": {"color": "var(--muted)", "type": "dashed", "width": 1}, "label": hidden}
    times = {"type": "category", "data": [], "boundaryGap": True, "axisTick": hidden, "axisPointer": pointer}
    return {
        "animation": False,
        "aria": {"enabled": True, "label": {"description": f"Candles of {symbol}, {interval.name} each, in UTC"}},
        "textStyle": {"fontFamily": "inherit"},
        "axisPointer": {"link": [{"xAxisIndex": [0, 1]}]},
        "tooltip": {
            "trigger": "axis",
            "axisPointer": {"type": "cross", "label": hidden, "crossStyle": {"color": "var(--muted)"}},
            "className": "tip",
            "transitionDuration": 0,
            ":formatter": f"found => tickpipe.tip(found, {decimals})",
            ":position": "(at, found, element, box, size) => tickpipe.aside(at, size)",
        },
        "grid": [
            {"left": 12, "top": 12, "bottom": "24%", "outerBoundsMode": "none"},
            {"left": 12, "top": "79%", "bottom": 26, "outerBoundsMode": "none"},
        ],
        "xAxis": [
            {**times, "axisLine": hidden, "axisLabel": hidden},
            {
                **times,
                "gridIndex": 1,
                "axisLine": line,
                "axisLabel": {
                    **label,
                    ":formatter": f"at => tickpipe.time(at, {interval.seconds})",
                    ":interval": f"(place, at) => tickpipe.round(at, {interval.seconds})",
                    "hideOverlap": True,
                },
            },
            {"type": "value", "min": 0, "max": 1, "show": False, "axisPointer": hidden},
        ],
        "yAxis": [
            {
                "position": "right",
                "axisLine": hidden,
                "axisTick": hidden,
                "scale": True,
                "splitNumber": 5,
                "minInterval": 10.0**-decimals,
                "splitLine": line,
                "axisLabel": {**label, ":formatter": f"price => tickpipe.price(price, {decimals})"},
            },
            {"gridIndex": 1, "show": False, "splitLine": hidden, "axisPointer": hidden},
            {"type": "value", "min": 0, "max": 1, "show": False, "axisPointer": hidden},
        ],
        "series": [
            {
                "id": "candles",
                "type": "candlestick",
                "data": [],
                "barMaxWidth": 14,
                "emphasis": {"disabled": True},
                "itemStyle": {
                    "color": "var(--up)",
                    "borderColor": "var(--up)",
                    "color0": "var(--down)",
                    "borderColor0": "var(--down)",
                },
            },
            {
                "id": "volume",
                "type": "bar",
                "xAxisIndex": 1,
                "yAxisIndex": 1,
                "data": [],
                "barMaxWidth": 14,
                "emphasis": {"disabled": True},
            },
            {"id": "gaps", "type": "line", "xAxisIndex": 2, "yAxisIndex": 2, "data": [], "silent": True, "z": 1},
        ],
    }


def data(axis: Sequence[Place], gaps: Sequence[Area], decimals: int, now: float) -> Options:
    """What changes with every tick, to be merged into `options`."""
    times = [datetime.fromtimestamp(place.start, UTC).isoformat() for place in axis]
    candles = [place.candle for place in axis]
    last = next((candle for candle in reversed(candles) if candle), None)
    volumes = any(candle and candle.volume for candle in candles)
    bars = [_bar(candle, volumes=volumes) for candle in candles]
    ends = [max(one.high for one in candles if one), min(one.low for one in candles if one)] if last else []
    digits = max((len(formatting.price(end, decimals)) for end in ends), default=0)
    room = {"right": max(ROOM_FOR_PRICE, 16 + round(PER_DIGIT * digits))}
    return {
        "grid": [room, room],
        "xAxis": [{"data": times}, {"data": times}, {"max": max(1, len(axis))}],
        "yAxis": [{}, {"max": _top([bar["value"] for bar in bars if isinstance(bar, dict)])}],
        "series": [
            {
                "id": "candles",
                "data": [[one.open, one.close, one.low, one.high] if one else ["-"] * 4 for one in candles],
                "markLine": _price_line(last, decimals),
            },
            {
                "id": "volume",
                "name": "volume" if volumes else "ticks",
                "data": bars,
            },
            {"id": "gaps", "markArea": _gap_areas(axis, gaps, now)},
        ],
    }


def _bar(candle: Candle | None, *, volumes: bool) -> object:
    if candle is None:
        return "-"
    colour = "var(--up-bar)" if candle.close >= candle.open else "var(--down-bar)"
    return {"value": candle.volume or 0 if volumes else candle.ticks, "itemStyle": {"color": colour}}


def _top(volumes: Sequence[float]) -> float | None:
    """Where the bars are cut off, None where none is: the first after a gap has all that was traded in it."""
    if len(volumes) < 3:
        return None
    *_, second, highest = sorted(volumes)
    return 1.2 * second if highest > 3 * second > 0 else None


def _price_line(last: Candle | None, decimals: int) -> Options:
    if last is None:
        return {"data": []}
    colour = "var(--up)" if last.close >= last.open else "var(--down)"
    return {
        "silent": True,
        "symbol": "none",
        "animation": False,
        "lineStyle": {"color": colour, "type": "dotted", "width": 1},
        "label": {
            "formatter": formatting.price(last.close, decimals),
            "color": "var(--on-price)",
            "backgroundColor": colour,
            "padding": [3, 5],
            "borderRadius": 3,
            "fontSize": 11,
        },
        "data": [{"yAxis": last.close}],
    }


def _gap_areas(axis: Sequence[Place], gaps: Sequence[Area], now: float) -> Options:
    return {
        "silent": True,
        "animation": False,
        "itemStyle": {"color": "var(--gap)", "borderColor": "var(--gap-edge)", "borderWidth": 1},
        "label": {"position": "insideTop", "color": "var(--gap-text)", "fontSize": 11, "lineHeight": 15},
        "data": [
            [
                {"name": _words(gap, (until - since) / len(axis), now), "xAxis": since},
                {"xAxis": until},
            ]
            for since, until, gap in gaps
        ],
    }


def _words(gap: Gap, share: float, now: float) -> str:
    lasted = formatting.span((now if gap.until is None else gap.until) - gap.since)
    if share < ROOM_FOR_LENGTH:
        return ""
    return lasted if share < ROOM_FOR_CAUSE else f"{gap.cause.partition(':')[0]}\n{lasted}"


def whole(axes: Options, changes: Options) -> Options:
    """The options with their data: dicts are merged, lists place by place."""
    merged = dict(axes)
    for name, value in changes.items():
        ours = axes.get(name)
        if isinstance(ours, list) and isinstance(value, list) and all(isinstance(each, dict) for each in ours) and ours:
            rest = ours[len(value) :]
            merged[name] = [whole(one, other) for one, other in zip(ours, value, strict=False)] + rest
        else:
            merged[name] = value
    return merged
