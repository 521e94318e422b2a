"""Draws horizontal bars as SVG for the README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, LABELS, FIGURES = 820, 310, 150
ROW, BAR, GAP = 26, 16, 22
OURS, OTHERS = "#2563eb", "#a3acba"

_STYLE = (
    "text { font: 13px ui-sans-serif, 'DejaVu Sans', Arial, sans-serif; fill: #1f2937; } "
    ".title { font-weight: 600; font-size: 14px; } .note { fill: #6b7280; font-size: 12px; }"
)


class Bar(NamedTuple):
    """One bar: label, value, and lowest and highest value."""

    label: str
    value: float
    low: float
    high: float
    ours: bool


class Group(NamedTuple):
    """Bars on one scale."""

    title: str
    bars: Sequence[Bar]


def svg(groups: Sequence[Group], note: str) -> str:
    """Draw the groups below each other, with a note at the end. A thin line on each bar shows its spread."""
    parts: list[str] = []
    y = 10
    for group in groups:
        y += 20
        parts.append(_text(16, y - 4, group.title, "title"))
        most = max(bar.high for bar in group.bars)
        for bar in group.bars:
            y += ROW
            parts += _bar(bar, y, (WIDTH - LABELS - FIGURES) / most)
        y += GAP
    parts.append(_text(16, y + 6, note, "note"))
    height = y + 22
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" xmlns="http://www.w3.org/2000/svg">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _bar(bar: Bar, y: int, pixels: float) -> list[str]:
    """`pixels`: per unit of the value. `y`: baseline of the text."""
    middle, end = y - 4, round(LABELS + bar.high * pixels)
    width = bar.value * pixels
    color = OURS if bar.ours else OTHERS
    return [
        _text(LABELS - 8, y, bar.label, "", 'text-anchor="end"'),
        f'<rect x="{LABELS}" y="{middle - BAR // 2}" width="{width:.1f}" height="{BAR}" rx="2" fill="{color}"/>',
        f'<path d="M{LABELS + bar.low * pixels:.1f} {middle}H{end}" stroke="#1f2937"/>',
        _text(end + 8, y, f"{bar.value:,.0f}", ""),
    ]


def _text(x: int, y: int, words: str, kind: str, more: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{kind}{" " if more else ""}{more}>{escape(words)}</text>'
