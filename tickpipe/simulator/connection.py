"""Open websockets of clients."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Response
from websockets.protocol import State

from tickpipe.simulator.venues.venue import Subscriptions

#: Seconds between two checks whether clients have answered a close frame.
POLL = 0.005


@dataclass(eq=False, slots=True)
class Connection:
    """An open websocket, with what its client has subscribed: from Twelve Data `symbols`, else `subscriptions`.

    `symbols` maps each symbol to the exchange that the client named, if any. The first one gets the next price.
    """

    number: int
    socket: ServerConnection
    symbols: OrderedDict[str, str | None] = field(default_factory=OrderedDict)
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    subscriptions: Subscriptions = field(default_factory=Subscriptions)

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self.socket.state is State.OPEN


def json_response(socket: ServerConnection, status: int, body: object) -> Response:
    """An HTTP response with a JSON body."""
    response = socket.respond(status, json.dumps(body))
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response


async def close_all(connections: Sequence[Connection], code: int, reason: str, timeout: float) -> None:
    """Send the rest and a close frame. Abort connections that have not answered within `timeout` seconds.

    A client's close frame is enough: the client need not close its socket as well.
    """
    loop = asyncio.get_running_loop()
    closing = {loop.create_task(each.socket.close(code, reason)): each.socket for each in connections}
    deadline = loop.time() + timeout
    while loop.time() < deadline and any(
        not task.done() and socket.protocol.close_rcvd is None for task, socket in closing.items()
    ):
        await asyncio.sleep(POLL)
    for socket in closing.values():
        socket.transport.abort()  # no effect on closed ones
    await asyncio.gather(*closing)
