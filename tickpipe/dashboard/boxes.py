"""The four boxes of the pipeline: websocket, stream, consumers, database. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.formatting import counted
from tickpipe import formatting
from tickpipe.inspect.snapshot import Session, Snapshot

State = Literal["good", "warn", "bad", "idle"]


@dataclass(frozen=True)
class Box:
    """One stage of the pipeline: a figure with its unit, and two lines of text."""

    state: State
    figure: str
    unit: str
    lines: tuple[str, str]


def boxes(snapshot: Snapshot) -> tuple[Box, Box, Box, Box]:
    """Websocket, stream, consumers, database."""
    return _websocket(snapshot), _stream(snapshot), _consumers(snapshot), _database(snapshot)


def headline(snapshot: Snapshot) -> tuple[State, str]:
    """The state of the whole pipeline: the worst of its boxes."""
    names = ("websocket", "Redis", "consumers", "database")
    found = list(zip(names, boxes(snapshot), strict=True))
    for state in ("bad", "warn"):
        for name, box in found:
            if box.state == state:
                return box.state, f"{name}: {box.lines[0]}"
    if found[0][1].state == "idle":
        return "idle", found[0][1].lines[0]
    return "good", "all is well"


def _websocket(snapshot: Snapshot) -> Box:
    figure, unit = formatting.rate(snapshot.received_rate), "prices/s"
    if not snapshot.sessions:
        return Box("idle", figure, unit, ("no producer yet", ""))
    # A session that began by a fast clock is in the future, and sorts first until its start has passed.
    newest = next((one for one in snapshot.sessions if one.id / 1e6 <= snapshot.at), snapshot.sessions[0])
    ago = formatting.span(snapshot.at - newest.last_reported_at)
    alive = [session for session in snapshot.sessions if session.is_alive(snapshot.at)]
    disconnected = [session for session in alive if session.connection == "disconnected"]
    if disconnected:
        return Box("bad", figure, unit, ("disconnected", disconnected[0].cause))
    if alive:
        feeds = ", ".join(sorted({session.feed for session in alive}))
        return Box("good", figure, unit, ("connected" if alive[0].connection else "connecting", feeds))
    if newest.stopped:
        return Box("idle", figure, unit, (f"producer stopped {ago} ago", newest.feed))
    active = any(consumer.state == "active" for consumer in snapshot.consumers)
    if snapshot.redis_error or snapshot.database_error or not active:
        # Reports pass through Redis and a consumer into the database. If one of them is down, no report can arrive.
        return Box("idle", figure, unit, ("unknown", f"last report stored {ago} ago"))
    return Box("bad", figure, unit, (f"no report from the producer for {ago}", newest.feed))


def _stream(snapshot: Snapshot) -> Box:
    if snapshot.redis_error:
        return Box("bad", "–", "waiting", ("cannot be read", snapshot.redis_error))
    backlog = snapshot.backlog
    if backlog is None:
        return Box("idle", "–", "waiting", ("nothing read yet", ""))
    behind = snapshot.waiting > max(1000.0, 10 * snapshot.stored_rate)
    entries = f"{formatting.count(backlog.lag)} unread · {formatting.count(backlog.pending)} pending"
    held = f"group {snapshot.holds_back} holds back trimming" if snapshot.holds_back else ""
    return Box(
        "warn" if behind or held else "good",
        formatting.count(snapshot.waiting),
        "waiting",
        (entries, held or f"stream length {formatting.count(backlog.length)}"),
    )


def _consumers(snapshot: Snapshot) -> Box:
    active = [consumer for consumer in snapshot.consumers if consumer.state == "active"]
    stopped = [consumer for consumer in snapshot.consumers if consumer.state != "active"]
    figure, unit = str(len(active)), "active"
    if snapshot.redis_error:
        return Box("idle", "–", unit, ("unknown", ""))
    if stopped:
        pending = sum(consumer.pending for consumer in stopped)
        text = f"{len(stopped)} stopped" + (f", {formatting.count(pending)} pending" if pending else "")
        return Box("bad", figure, unit, (text, "others take over its entries" if pending else ""))
    if not active:
        return Box("bad" if snapshot.waiting else "idle", "0", unit, ("no consumer", ""))
    pending = sum(consumer.pending for consumer in active)
    return Box("good", figure, unit, ("all active", f"{formatting.count(pending)} pending"))


def _database(snapshot: Snapshot) -> Box:
    figure, unit = formatting.rate(snapshot.stored_rate), "rows/s"
    if snapshot.database_error:
        return Box("bad", figure, unit, ("cannot be read", snapshot.database_error))
    if snapshot.database is None:
        return Box("idle", figure, unit, ("nothing read yet", ""))
    count = snapshot.database.dead_letters
    about = f"{snapshot.database.version} · {formatting.size(snapshot.database.size)}"
    if count:
        letters = f"{count:,}+ dead letters" if count >= 1000 else counted(count, "dead letter")
        return Box("warn", figure, unit, (letters, about))
    return Box("good", figure, unit, ("no dead letters", about))


def completeness(session: Session, now: float) -> tuple[State, str]:
    """Whether all prices that the producer of a session reported are stored. `now`: seconds since 1970."""
    if session.verified:
        return "good", "complete, verified"
    if session.counted is None:
        return "idle", "not verified yet"
    if session.counted.reported == 0 and session.is_alive(now):
        return "idle", "just started"
    missing = session.counted.reported - session.counted.stored
    if missing <= 0:
        return "good", "complete so far" if session.is_alive(now) else "complete, counted"
    if missing <= session.counted.waiting:
        return "idle", f"{formatting.count(missing)} waiting"
    return "bad", f"{formatting.count(missing)} not found: run tickpipe verify"
