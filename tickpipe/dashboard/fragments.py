"""Lists and tables of the page as HTML. Pure. Escapes all text that is not a constant of this package."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from common.terminal import printable
from tickpipe import formatting
from tickpipe.dashboard.boxes import Box, completeness
from tickpipe.dashboard.history import ChartData
from tickpipe.dashboard.quotes import Quote
from tickpipe.inspect.snapshot import Consumer, Gap, Session, Snapshot, Tick

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><g fill="#12a06f"><rect x="4" y="9" width="5" '
    'height="9" rx="1"/><rect x="5.9" y="5" width="1.2" height="16"/></g><g fill="#e0435a"><rect x="14" y="6" '
    'width="5" height="8" rx="1"/><rect x="15.9" y="2.5" width="1.2" height="15"/></g></svg>'
)
THEME_ICON = (
    '<svg viewBox="0 0 24 24"><circle cx="12" cy="12" r="8" fill="none" stroke="currentColor" stroke-width="1.8"/>'
    '<path d="M12 4a8 8 0 0 1 0 16z" fill="currentColor"/></svg>'
)
ARROW = (
    '<svg viewBox="0 0 26 14" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" '
    'stroke-linejoin="round"><path d="M1 7h23M18.5 1.5 24 7l-5.5 5.5"/></svg>'
)
#: Characters of a consumer's name that are shown.
MAX_NAME = 20


def escaped(text: str) -> str:
    """Text as HTML, with control characters and changes of text direction made visible."""
    return escape(printable(text))


def direction(change: float | None) -> str:
    """The CSS class that colours a change."""
    return "up" if (change or 0) > 0 else "down" if (change or 0) < 0 else "muted"


def facts(quote: Quote, chart: ChartData, now: float) -> str:
    """The newest tick and the newest candle in one line. `now`: seconds since 1970."""
    found = [("age", formatting.span(now - quote.received))]
    for tick in chart.ticks[:1]:
        found += [("bid", _price(tick.bid, quote.decimals)), ("ask", _price(tick.ask, quote.decimals))]
    for candle in chart.candles[-1:]:
        for name, value in (("open", candle.open), ("high", candle.high), ("low", candle.low)):
            found.append((name, formatting.price(value, quote.decimals)))
        found.append(("ticks", formatting.count(candle.ticks)))
    return "".join(f"<span>{name} <b>{escaped(value)}</b></span>" for name, value in found)


def ticks(latest: Sequence[Tick], decimals: int) -> str:
    """A table of the latest ticks, in their order."""
    rows = [
        f"<tr><td>{formatting.moment(tick.received, '%H:%M:%S')}"
        f"<small>.{int(tick.received % 1 * 1000):03d}</small></td>"
        f"<td>{formatting.price(tick.price, decimals)}</td><td>{_price(tick.bid, decimals)}</td>"
        f"<td>{_price(tick.ask, decimals)}</td></tr>"
        for tick in latest
    ]
    head = "<tr><th>received</th><th>price</th><th>bid</th><th>ask</th></tr>"
    return f'<table class="table ticks"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _price(value: float | None, decimals: int) -> str:
    return "–" if value is None else formatting.price(value, decimals)


def gaps(shown: Sequence[Gap]) -> str:
    """The gaps that the chart shades, in one line."""
    if not shown:
        return "no gap in this chart"
    count = "1 gap" if len(shown) == 1 else f"{len(shown)} gaps, the newest"
    return f"{count}: {gap(shown[-1])}"


def gap(one: Gap) -> str:
    """Start, length and cause of a gap."""
    since = formatting.moment(one.since, "%d %b %H:%M:%S")
    if one.until is None:
        return f"no prices since {since} ({one.cause})"
    return f"{since}, {formatting.span(one.until - one.since)} ({one.cause})"


def figure(box: Box) -> str:
    """The figure of a box."""
    return f"{escaped(box.figure)} <small>{escaped(box.unit)}</small>"


def lines(box: Box) -> str:
    """The two lines of a box."""
    return "".join(f'<div class="box-line" title="{escaped(line)}">{escaped(line)}</div>' for line in box.lines)


def members(consumers: Sequence[Consumer]) -> str:
    """A line for each consumer: name, pending entries, rows per second."""
    return "".join(
        f'<div class="member {one.state}" title="{escaped(one.name)}"><i class="dot {one.state}"></i>'
        f"<span>{escaped(_short(one.name))}</span><span>{_pending(one)}</span><span>{_rate(one)}</span></div>"
        for one in consumers
    )


def _short(name: str) -> str:
    """The end of a long name: names of one host differ only there."""
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


def _rate(one: Consumer) -> str:
    return f"{formatting.rate(one.rate)}/s" if one.state == "active" else "–"


def _pending(one: Consumer) -> str:
    if one.state == "gone":
        return "gone"
    pending = f"{formatting.count(one.pending)} pending"
    return f"{pending}, {formatting.span(one.idle)}" if one.state == "idle" else pending


def latency(snapshot: Snapshot) -> str:
    """The latency from received to committed."""
    p50, p99 = formatting.milliseconds(snapshot.latency_p50), formatting.milliseconds(snapshot.latency_p99)
    return f"<span>received → committed: </span>p50 <b>{p50}</b> · p99 <b>{p99}</b>"


def sessions(snapshot: Snapshot) -> str:
    """A table of the newest sessions, and whether all prices of each are stored."""
    head = '<th>began</th><th>feed</th><th class="spare">last report</th><th class="number">prices</th><th>stored</th>'
    rows = "".join(_session(one, snapshot.at) for one in snapshot.sessions)
    return f'<table class="table sessions"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _session(one: Session, now: float) -> str:
    state, text = completeness(one, now)
    stopped = "stopped " if one.stopped else ""
    return (
        f"<tr><td>{formatting.moment(one.id / 1e6, '%d %b %H:%M:%S')}</td><td>{escaped(one.feed)}</td>"
        f'<td class="spare muted">{stopped}{formatting.span(now - one.last_reported_at)} ago</td>'
        f'<td class="number">{formatting.count(one.last_seq)}</td>'
        f'<td><i class="dot {state}"></i>{text}</td></tr>'
    )
