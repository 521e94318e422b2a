"""Draws candles, with volume and gaps. Needs the extra `plot`."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from plotly.subplots import make_subplots

_RISING, _FALLING, _GAP = "#26a69a", "#ef5350", "#9e9e9e"


def draw(candles: pa.Table, gaps: pa.Table | None) -> go.Figure:
    """A chart of each symbol, one below the other. Below the last chart is its volume, if it is the only one.

    `candles` has the columns of `Database.candles()`, `gaps` those of `Database.gaps()`: they are shaded.
    """
    symbols = sorted(set(candles["symbol"].to_pylist()))
    alone = len(symbols) == 1 and candles["volume"].null_count < len(candles)
    heights = [0.75, 0.25] if alone else None
    titles = [*symbols, "volume"] if alone else symbols
    figure = make_subplots(
        rows=max(1, len(titles)), shared_xaxes=True, row_heights=heights, vertical_spacing=0.06, subplot_titles=titles
    )
    for row, symbol in enumerate(symbols, 1):
        found = candles.filter(pc.equal(candles["symbol"], symbol))
        columns = {name: found[name].to_pylist() for name in ("bucket", "open", "high", "low", "close", "volume")}
        at, volume = columns.pop("bucket"), columns.pop("volume")
        line = {"increasing_line_color": _RISING, "decreasing_line_color": _FALLING}
        figure.add_trace(go.Candlestick(x=at, name=symbol, **columns, **line), row=row, col=1)
        if alone:
            figure.add_trace(go.Bar(x=at, y=volume, name="volume", marker_color=_GAP), row=2, col=1)
        for gap in _in_view(gaps, symbol, at):
            figure.add_vrect(**gap, fillcolor=_GAP, opacity=0.3, line_width=0, row=row, col=1)
    figure.update_layout(showlegend=False, template="plotly_white", height=max(450, 280 * len(titles)))
    figure.update_xaxes(rangeslider_visible=False)
    return figure


def _in_view(gaps: pa.Table | None, symbol: str, at: list[Any]) -> list[dict[str, Any]]:
    """The ends of the gaps of a symbol, or of all symbols, within the first and the last of these times."""
    if gaps is None or not at:
        return []
    spans = [
        (max(gap["since"], at[0]), min(gap["until"] or at[-1], at[-1]))
        for gap in gaps.to_pylist()
        if gap["symbol"] in {None, symbol}
    ]
    return [{"x0": since, "x1": until} for since, until in spans if since < until]
