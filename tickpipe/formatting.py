"""Numbers and times as page, view and commands write them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

#: Most decimals that are shown of a price of at least so much: a feed's 228.50999 is 228.51, a coin is 0.00000000123.
MOST_DECIMALS = ((1000, 2), (10, 4), (0.1, 6), (1e-3, 8), (1e-5, 10), (1e-7, 12), (1e-9, 14), (0, 16))


def decimals(prices: Sequence[float]) -> int:
    """As many decimals as these prices were told with, within reason."""
    return max(map(_decimals, prices), default=2)


def _decimals(price: float) -> int:
    most = next(places for size, places in MOST_DECIMALS if abs(price) >= size)
    return len(f"{price:.{most}f}".rstrip("0").partition(".")[2])


def price(value: float, places: int) -> str:
    """A price with its decimals, thousands apart."""
    return f"{value:,.{places}f}"


def change(value: float | None) -> str:
    """A fraction as a signed percentage; a true minus sign is as wide as a plus."""
    words = "–" if value is None else f"{value * 100:+.2f} %".replace("-", "−")
    return words[1:] if words[1:] == "0.00 %" else words


def count(value: float) -> str:
    """A count, thousands apart."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """Events a second: with a decimal while that tells something."""
    return f"{per_second:,.1f}" if per_second < 100 else f"{per_second:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """A short time."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def span(seconds: float) -> str:
    """How long something lasted or how long ago it was."""
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86_400:.0f} days"


def size(count_of_bytes: float) -> str:
    """Bytes, in a unit in which they read well."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_of_bytes < 1000:
            return f"{count_of_bytes:.3g} {unit}"
        count_of_bytes /= 1000
    return f"{count_of_bytes:,.3g} TB"


def moment(seconds: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time in UTC, from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime(form)
