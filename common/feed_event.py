"""A feed event: a change in the state of a feed, as an entry of the stream `<price stream>:feed`. Pure.

Kinds: `started` `connected` `subscribed` `unsubscribed` `refused` `instrument` `disconnected` `overflow` `skipped`
`alive` `stopped`. docs/adding-a-feed.md describes each of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.codec import Codec
from common.number import is_bigint


class FeedEvent(NamedTuple):
    """The fields of a stream entry, in its order. Each is text.

    `session` and `number` (1, 2, 3 and so on) identify the event. `at` is microseconds UTC, `event` the kind, `detail`
    a JSON object.
    """

    session: str
    number: str
    at: str
    event: str
    detail: str


#: Seconds without a feed event after which a session has ended: a producer writes one every 5 seconds. SQL has the same
#: value in the function report_timeout().
REPORT_TIMEOUT = 15.0

CODEC = Codec("feed event", FeedEvent, FeedEvent._fields)
#: The fields that hold integers.
INTEGERS = ("session", "number", "at")
encode = CODEC.encode
decode = CODEC.decode


def validation_error(event: FeedEvent) -> str | None:
    """Why this event cannot be stored, with field and value; None if the database must decide."""
    invalid = next((name for name in INTEGERS if not is_bigint(getattr(event, name))), None)
    return invalid and f"{invalid} is not a whole number of 64 bits: {getattr(event, invalid)[:80]!r}"


def make(session: int, number: int, at: int, event: str, detail: Mapping[str, Any]) -> FeedEvent:
    """A feed event with these values. Characters that PostgreSQL's JSON refuses (NUL, lone surrogates) become "?"."""
    text = json.dumps(detail, ensure_ascii=False).encode(errors="replace").decode()
    text = re.sub(r"(?<!\\)((?:\\\\)*)\\u0000", r"\1?", text)
    return FeedEvent(str(session), str(number), str(at), event, text)
