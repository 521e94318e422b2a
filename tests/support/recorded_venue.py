"""A websocket server that sends a recorded session of an exchange after the first subscription."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from common import threads
from tests.support.waiting import PATIENCE

SESSIONS = Path(__file__).parents[1] / "data" / "venues"


def messages(session: str) -> list[str]:
    """The messages that the exchange sent in a session, by the beginning of its file's name."""
    (path,) = SESSIONS.glob(f"{session}*")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.partition(": ")[2] for line in lines if re.match(r"[0-9.]+: ", line)]


Rest = Callable[[str, dict[str, str]], object]


@contextmanager
def recorded_venue(texts: list[str], rest: Rest | None = None) -> Iterator[str]:
    """Serve these messages to each client after its first message. Gives the address.

    `rest` answers other requests: it gets the path and the parameters, and returns a JSON value or an HTTP status.
    """

    def process(client: ServerConnection, request: Request) -> Response | None:
        if rest is None or "Upgrade" in request.headers:
            return None
        url = urlsplit(request.path)
        answer = rest(url.path, dict(parse_qsl(url.query)))
        if isinstance(answer, int):
            return client.respond(HTTPStatus(answer), "no")
        return client.respond(HTTPStatus.OK, json.dumps(answer))

    def handle(client: ServerConnection) -> None:
        request = json.loads(client.recv())
        if "id" in request:
            client.send(json.dumps({"result": None, "id": request["id"]}))
        for text in texts:
            client.send(text)
        for _ in client:  # until it closes
            pass

    with venue_server(handle, process) as url:
        yield url


@contextmanager
def venue_server(
    handle: Callable[[ServerConnection], None], process: Callable[[ServerConnection, Request], Response | None]
) -> Iterator[str]:
    """Serve websockets. Gives the address. `process` answers a request that is no handshake, or refuses one."""

    def handle_until_closed(client: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            handle(client)

    with serve(handle_until_closed, "127.0.0.1", 0, process_request=process) as server:
        serving = threads.in_thread(server.serve_forever)
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            serving.result(timeout=PATIENCE)
