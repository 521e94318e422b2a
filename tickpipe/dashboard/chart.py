"""A symbol's chart as options of ECharts. Pure.

Colours are variables of the style sheet. ECharts draws SVG here, so the page's theme applies to the chart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tickpipe import formatting
from tickpipe.dashboard.history import Interval
from tickpipe.inspect.snapshot import Candle, Gap

#: Slots of a gap on the axis, at most. A longer gap is compressed, to leave room for prices.
MAX_GAP_SLOTS = 10
#: The width of a gap's area in slots, at least, so that short gaps are visible.
MIN_GAP_WIDTH = 0.3
#: Slots of a chart, at least: a few candles do not fill it.
MIN_SLOTS = 45
#: Pixels to the right of the chart: in all, and per character of longer prices.
MIN_PRICE_WIDTH, DIGIT_WIDTH = 74, 6.6
#: The least share of the chart that shows a gap's length, and its cause.
LENGTH_SHARE, CAUSE_SHARE = 0.05, 0.18

Options = dict[str, Any]


@dataclass(frozen=True)
class Slot:
    """A slot of the axis, `seconds` long. `candle`: None for a part of a gap."""

    start: float
    seconds: float
    candle: Candle | None


class Area(NamedTuple):
    """A gap on the axis. `since`, `until`: in slots from its left edge."""

    since: float
    until: float
    gap: Gap


def slots(candles: Sequence[Candle], gaps: Sequence[Gap], width: float, most: int, now: float) -> list[Slot]:
    """The axis, oldest first. Gaps take slots; times without prices, such as nights and weekends, take none.

    `width`: of a candle, in seconds. `most`: slots, at most. `now`: the end of a gap that lasts, in seconds since 1970.
    """
    axis: list[Slot] = []
    for candle in candles:
        if axis:
            axis += _gap_slots(axis[-1].start + width, candle.start, gaps, width, now)
        axis.append(Slot(candle.start, width, candle))
    if axis:
        axis += _gap_slots(axis[-1].start + width, now // width * width + width, gaps, width, now)
    if axis:
        axis = [Slot(axis[0].start - width * n, width, None) for n in range(MIN_SLOTS - len(axis), 0, -1)] + axis
    return axis[-most:]


def _gap_slots(since: float, until: float, gaps: Sequence[Gap], width: float, now: float) -> list[Slot]:
    """Slots for the time between two candles, if gaps cover at least half of it."""
    covered = sum(max(0.0, min(until, gap.until or now) - max(since, gap.since)) for gap in gaps)
    if until <= since or covered < (until - since) / 2:
        return []
    count = min(MAX_GAP_SLOTS, round((until - since) / width))
    step = (until - since) / count
    return [Slot(since + number * step, step, None) for number in range(count)]


def position(axis: Sequence[Slot], at: float) -> float:
    """The position of a time on the axis, in slots from its left edge. Times outside it map to the nearest edge."""
    index = bisect_right(axis, at, key=lambda slot: slot.start) - 1
    if index < 0:
        return 0.0
    return index + min(1.0, (at - axis[index].start) / axis[index].seconds)


def areas(axis: Sequence[Slot], gaps: Sequence[Gap], now: float) -> list[Area]:
    """The gaps on the axis."""
    found = []
    for gap in gaps:
        since, until = position(axis, gap.since), position(axis, now if gap.until is None else gap.until)
        if until <= 0 or (gap.until is not None and gap.until <= axis[0].start):
            continue
        if until - since < MIN_GAP_WIDTH:
            middle = (since + until) / 2
            since = min(max(0.0, middle - MIN_GAP_WIDTH / 2), len(axis) - MIN_GAP_WIDTH)
            until = since + MIN_GAP_WIDTH
        found.append(Area(since, until, gap))
    return found


_HIDDEN = {"show": False}
_LABEL = {"color": "var(--muted)", "fontSize": 11, "fontFamily": "inherit"}
_LINE = {"lineStyle": {"color": "var(--line)"}}
_NO_EMPHASIS = {"disabled": True}


def options(symbol: str, interval: Interval, decimals: int) -> Options:
    """The chart without its data: axes, colours and tooltip."""
    return {
        "animation": False,
        "aria": {"enabled": True, "label": {"description": f"Candles of {symbol}, {interval.name} each, in UTC"}},
        "textStyle": {"fontFamily": "inherit"},
        "axisPointer": {"link": [{"xAxisIndex": [0, 1]}]},
        "tooltip": {
            "trigger": "axis",
            "axisPointer": {"type": "cross", "label": _HIDDEN, "crossStyle": {"color": "var(--muted)"}},
            "className": "tip",
            "transitionDuration": 0,
            ":formatter": f"found => tickpipe.tip(found, {decimals})",
            ":position": "(at, found, element, box, size) => tickpipe.aside(at, size)",
        },
        "grid": [
            {"left": 12, "top": 12, "bottom": "24%", "outerBoundsMode": "none"},
            {"left": 12, "top": "79%", "bottom": 26, "outerBoundsMode": "none"},
        ],
        "xAxis": _time_axes(interval),
        "yAxis": _price_axes(decimals),
        "series": _series(),
    }


def _time_axes(interval: Interval) -> list[Options]:
    """The axes of candles, of volume, and of the gaps' areas."""
    pointer = {"lineStyle": {"color": "var(--muted)", "type": "dashed", "width": 1}, "label": _HIDDEN}
    times = {"type": "category", "data": [], "boundaryGap": True, "axisTick": _HIDDEN, "axisPointer": pointer}
    label = {
        **_LABEL,
        ":formatter": f"at => tickpipe.time(at, {interval.seconds})",
        ":interval": f"(index, at) => tickpipe.round(at, {interval.seconds})",
        "hideOverlap": True,
    }
    return [
        {**times, "axisLine": _HIDDEN, "axisLabel": _HIDDEN},
        {**times, "gridIndex": 1, "axisLine": _LINE, "axisLabel": label},
        {"type": "value", "min": 0, "max": 1, "show": False, "axisPointer": _HIDDEN},
    ]


def _price_axes(decimals: int) -> list[Options]:
    """The axes of candles, of volume, and of the gaps' areas."""
    return [
        {
            "position": "right",
            "axisLine": _HIDDEN,
            "axisTick": _HIDDEN,
            "scale": True,
            "splitNumber": 5,
            "minInterval": 10.0**-decimals,
            "splitLine": _LINE,
            "axisLabel": {**_LABEL, ":formatter": f"price => tickpipe.price(price, {decimals})"},
        },
        {"gridIndex": 1, "show": False, "splitLine": _HIDDEN, "axisPointer": _HIDDEN},
        {"type": "value", "min": 0, "max": 1, "show": False, "axisPointer": _HIDDEN},
    ]


def _series() -> list[Options]:
    bars = {"data": [], "barMaxWidth": 14, "emphasis": _NO_EMPHASIS}
    colours = {
        "color": "var(--up)",
        "borderColor": "var(--up)",
        "color0": "var(--down)",
        "borderColor0": "var(--down)",
    }
    return [
        {"id": "candles", "type": "candlestick", **bars, "itemStyle": colours},
        {"id": "volume", "type": "bar", "xAxisIndex": 1, "yAxisIndex": 1, **bars},
        {"id": "gaps", "type": "line", "xAxisIndex": 2, "yAxisIndex": 2, "data": [], "silent": True, "z": 1},
    ]


def data(axis: Sequence[Slot], gaps: Sequence[Area], decimals: int, now: float) -> Options:
    """The part that changes with every tick, to be merged into `options`."""
    times = [datetime.fromtimestamp(slot.start, UTC).isoformat() for slot in axis]
    candles = [slot.candle for slot in axis]
    last = next((candle for candle in reversed(candles) if candle), None)
    volumes = any(candle and candle.volume for candle in candles)
    bars = [_bar(candle, volumes=volumes) for candle in candles]
    ends = [max(one.high for one in candles if one), min(one.low for one in candles if one)] if last else []
    digits = max((len(formatting.price(end, decimals)) for end in ends), default=0)
    room = {"right": max(MIN_PRICE_WIDTH, 16 + round(DIGIT_WIDTH * digits))}
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
    """The height at which bars are cut off; None for no limit. The bar after a gap holds the volume of the gap."""
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


def _gap_areas(axis: Sequence[Slot], gaps: Sequence[Area], now: float) -> Options:
    return {
        "silent": True,
        "animation": False,
        "itemStyle": {"color": "var(--gap)", "borderColor": "var(--gap-edge)", "borderWidth": 1},
        "label": {"position": "insideTop", "color": "var(--gap-text)", "fontSize": 11, "lineHeight": 15},
        "data": [
            [
                {"name": _gap_label(gap, (until - since) / len(axis), now), "xAxis": since},
                {"xAxis": until},
            ]
            for since, until, gap in gaps
        ],
    }


def _gap_label(gap: Gap, share: float, now: float) -> str:
    lasted = formatting.span((now if gap.until is None else gap.until) - gap.since)
    if share < LENGTH_SHARE:
        return ""
    return lasted if share < CAUSE_SHARE else f"{gap.cause.partition(':')[0]}\n{lasted}"


def merged(axes: Options, changes: Options) -> Options:
    """The options with their data: dicts are merged key by key, lists of dicts item by item."""
    result = dict(axes)
    for name, value in changes.items():
        ours = axes.get(name)
        if isinstance(ours, list) and isinstance(value, list) and all(isinstance(each, dict) for each in ours) and ours:
            rest = ours[len(value) :]
            result[name] = [merged(one, other) for one, other in zip(ours, value, strict=False)] + rest
        else:
            result[name] = value
    return result
