"""Feed events: connects, subscriptions and outages of the feed, in the stream `<stream>:feed`. Pure.

Kinds: `started` `connected` `subscribed` `refused` `instrument` `disconnected` `overflow` `alive` `stopped`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.codec import Codec
from common.number import is_bigint


class FeedEvent(NamedTuple):
    """One feed event; every value is text. `session` and `number` (1, 2, 3 …) are its identity.

    `at` is microseconds UTC, `event` the kind, `detail` a JSON object.
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
#: The fields that are integers.
INTEGERS = ("session", "number", "at")
encode = CODEC.encode
decode = CODEC.decode


def validation_error(event: FeedEvent) -> str | None:
    """Why this event cannot be stored, with field and value; None if it may be valid. The database has more checks."""
    odd = next((name for name in INTEGERS if not is_bigint(getattr(event, name))), None)
    return odd and f"{odd} is not a 64-bit integer: {getattr(event, odd)[:80]!r}"


def make(session: int, number: int, at: int, event: str, detail: Mapping[str, Any]) -> FeedEvent:
    """A feed event of these values. "?" replaces NUL and lone surrogates, which PostgreSQL's JSON cannot have."""
    text = json.dumps(detail, ensure_ascii=False).encode(errors="replace").decode()
    text = re.sub(r"(?<!\\)((?:\\\\)*)\\u0000", r"\1?", text)
    return FeedEvent(str(session), str(number), str(at), event, text)
