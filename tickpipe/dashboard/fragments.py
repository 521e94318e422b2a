"""The parts of the page that are lists and tables, as HTML. Pure; every text that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from common.terminal import printable
from tickpipe import formatting
from tickpipe.dashboard.boxes import Box, Consumer, Health, Session, completeness
from tickpipe.dashboard.history import Look
from tickpipe.dashboard.quotes import Quote
from tickpipe.inspect.database import Gap, Tick

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><g fill="#12a06f"><rect x="4" y="9" width="5" '
    'height="9" rx="1"/><rect x="5.9" y="5" width="1.2" height="16"/></g><g fill="#e0435a"><rect x="14" y="6" '
    'width="5" height="8" rx="1"/><rect x="15.9" y="2.5" width="1.2" height="15"/></g></svg>'
)
HALF = (
    '<svg viewBox="0 0 24 24"><circle cx="12" cy="12" r="8" fill="none" stroke="currentColor" stroke-width="1.8"/>'
    '<path d="M12 4a8 8 0 0 1 0 16z" fill="currentColor"/></svg>'
)
ARROW = (
    '<svg viewBox="0 0 26 14" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" '
    'stroke-linejoin="round"><path d="M1 7h23M18.5 1.5 24 7l-5.5 5.5"/></svg>'
)


def escaped(words: str) -> str:
    """Text as HTML; control characters, and what turns the direction of text, as on a terminal."""
    return escape(printable(words))


def direction(change: float | None) -> str:
    """The class that colours a change."""
    return "up" if (change or 0) > 0 else "down" if (change or 0) < 0 else "muted"


def facts(quote: Quote, look: Look, now: float) -> str:
    """The newest tick and the newest candle in a line. `now`: seconds since 1970."""
    found = [("age", formatting.span(now - quote.received))]
    for tick in look.ticks[:1]:
        found += [("bid", _price(tick.bid, quote.places)), ("ask", _price(tick.ask, quote.places))]
    for candle in look.candles[-1:]:
        for name, value in (("open", candle.open), ("high", candle.high), ("low", candle.low)):
            found.append((name, formatting.price(value, quote.places)))
        found.append(("ticks", formatting.count(candle.ticks)))
    return "".join(f"<span>{name} <b>{escaped(value)}</b></span>" for name, value in found)


def ticks(found: Sequence[Tick], places: int) -> str:
    """The latest ticks, newest first."""
    rows = [
        f"<tr><td>{formatting.moment(tick.received, '%H:%M:%S')}"
        f"<small>.{int(tick.received % 1 * 1000):03d}</small></td>"
        f"<td>{formatting.price(tick.price, places)}</td><td>{_price(tick.bid, places)}</td>"
        f"<td>{_price(tick.ask, places)}</td></tr>"
        for tick in found
    ]
    head = "<tr><th>received</th><th>price</th><th>bid</th><th>ask</th></tr>"
    return f'<table class="table ticks"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _price(value: float | None, places: int) -> str:
    return "–" if value is None else formatting.price(value, places)


def gaps(found: Sequence[Gap]) -> str:
    """The gaps that a chart shades, in a line."""
    if not found:
        return "no gap in this chart"
    words = "1 gap" if len(found) == 1 else f"{len(found)} gaps, the newest"
    return f"{words}: {gap(found[-1])}"


def gap(one: Gap) -> str:
    """A gap in words."""
    since = formatting.moment(one.since, "%d %b %H:%M:%S")
    if one.until is None:
        return f"blind since {since} ({one.cause})"
    return f"{since}, {formatting.span(one.until - one.since)} ({one.cause})"


def figure(box: Box) -> str:
    """What a box says in large."""
    return f"{escaped(box.figure)} <small>{escaped(box.unit)}</small>"


def lines(box: Box) -> str:
    """What a box says in small."""
    return "".join(f'<div class="box-line" title="{escaped(line)}">{escaped(line)}</div>' for line in box.lines)


def members(consumers: Sequence[Consumer]) -> str:
    """Each consumer: its name, what it holds, the rows a second that it stores."""
    return "".join(
        f'<div class="member {one.state}" title="{escaped(one.name)}"><i class="dot {one.state}"></i>'
        f"<span>{escaped(_short(one.name))}</span><span>{_holds(one)}</span><span>{_pace(one)}</span></div>"
        for one in consumers
    )


def _short(name: str) -> str:
    """The end of a long name: it begins with the host's, and ends with what tells it apart."""
    return name if len(name) <= 20 else f"…{name[-19:]}"


def _pace(one: Consumer) -> str:
    return f"{formatting.rate(one.rate)}/s" if one.state == "works" else "–"


def _holds(one: Consumer) -> str:
    if one.state == "gone":
        return "gone"
    held = f"{formatting.count(one.pending)} held"
    return f"{held}, {formatting.span(one.idle)}" if one.state == "silent" else held


def latency(health: Health) -> str:
    """From received to committed."""
    p50, p99 = formatting.milliseconds(health.latency_p50), formatting.milliseconds(health.latency_p99)
    return f"<span>received → committed: </span>p50 <b>{p50}</b> · p99 <b>{p99}</b>"


def sessions(health: Health) -> str:
    """The newest runs of producers, and whether all of each is stored."""
    head = '<th>began</th><th>feed</th><th class="spare">last word</th><th class="number">prices</th><th>stored</th>'
    rows = "".join(_session(one, health.at) for one in health.sessions)
    return f'<table class="table sessions"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _session(one: Session, now: float) -> str:
    state, words = completeness(one, now)
    word = "stopped " if one.stopped else ""
    return (
        f"<tr><td>{formatting.moment(one.id / 1e6, '%d %b %H:%M:%S')}</td><td>{escaped(one.feed)}</td>"
        f'<td class="spare muted">{word}{formatting.span(now - one.last_word)} ago</td>'
        f'<td class="number">{formatting.count(one.last_seq)}</td>'
        f'<td><i class="dot {state}"></i>{words}</td></tr>'
    )
