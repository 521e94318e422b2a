"""Formats numbers, times and sizes for the terminal, the dashboard and messages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from common.formatting import counted

#: Decimals shown at most, by the smallest price that they apply to: 228.50999 becomes 228.51, a coin 0.00000000123.
MOST_DECIMALS = ((1000, 2), (10, 4), (0.1, 6), (1e-3, 8), (1e-5, 10), (1e-7, 12), (1e-9, 14), (0, 16))


def decimals(prices: Sequence[float]) -> int:
    """The decimals that show these prices in full, at most MOST_DECIMALS."""
    return max(map(_decimals, prices), default=2)


def _decimals(price: float) -> int:
    most = next(places for size, places in MOST_DECIMALS if abs(price) >= size)
    return len(f"{price:.{most}f}".rstrip("0").partition(".")[2])


def price(value: float, places: int) -> str:
    """A price with thousands separators."""
    return f"{value:,.{places}f}"


def change(value: float | None) -> str:
    """A fraction as a signed percentage. The minus sign is U+2212, as wide as a plus."""
    text = "–" if value is None else f"{value * 100:+.2f} %".replace("-", "−")
    return text[1:] if text[1:] == "0.00 %" else text


def count(value: float) -> str:
    """A count with thousands separators."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """Events per second, below 100 with one decimal."""
    return f"{per_second:,.1f}" if per_second < 100 else f"{per_second:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """A duration in milliseconds, from 10 s on in seconds."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def span(seconds: float) -> str:
    """A duration in a unit that leaves it at most two or three digits."""
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86_400:.0f} days"


def consumers(active: int, idle: int) -> str:
    """The consumers of a group: `2 consumers`, `1 consumer and 1 idle`."""
    return counted(active, "consumer") + (f" and {idle:,} idle" if idle else "")


def size(count_of_bytes: float) -> str:
    """Bytes with three significant digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_of_bytes < 1000:
            return f"{count_of_bytes:.3g} {unit}"
        count_of_bytes /= 1000
    return f"{count_of_bytes:,.3g} TB"


def moment(seconds: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time in UTC. `seconds`: since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime(form)
