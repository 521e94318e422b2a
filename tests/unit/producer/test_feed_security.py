"""A hostile websocket server can neither leak the API key nor exhaust the memory of the producer."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from websockets.sync.server import ServerConnection, serve

from common import clock, threads
from common.feed_event import FeedEvent
from common.settings import Secret
from producer.config import FeedConfig
from producer.feed import Feed
from producer.queue import EventQueue
from tests.support.waiting import PATIENCE, wait_for

KEY = "the+key/of us"
#: Bytes. The vendor documents messages of up to 1 MB.
TOO_MUCH = 64 * 1024 * 1024


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A TCP server that answers one request for each connection. Yields its address and the requests."""
    heard: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def run() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with closing(client):
                        heard.append(client.recv(65_536))
                        client.sendall(answer(heard[-1]))

        threading.Thread(target=run, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", heard
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def sending(send: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A websocket server that calls `send` with each connection. Yields its URL."""

    def handle(connection: ServerConnection) -> None:
        with suppress(OSError):
            send(connection)

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        server.shutdown()


@contextmanager
def feeding(url: str) -> Iterator[tuple[Feed, EventQueue]]:
    """A feed that receives from this server."""
    stop, queue = threading.Event(), EventQueue(1000)
    feed = Feed(
        FeedConfig(url=url), api_key=lambda: Secret(KEY), symbols=["AAPL"], queues=[queue], clock=clock.microseconds
    )
    running = threads.in_thread(feed.run, stop)
    try:
        yield feed, queue
    finally:
        stop.set()
        running.exception(PATIENCE)


def causes(queue: EventQueue) -> list[str]:
    """The causes of the recorded disconnections."""
    return [
        str(json.loads(item.detail)["cause"])
        for item in queue.take(timeout=0) or []
        if isinstance(item, FeedEvent) and item.event == "disconnected"
    ]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_handshake_redirect_is_not_followed(status: int) -> None:
    with answering(lambda _: b"") as (elsewhere, heard):

        def redirect(request: bytes) -> bytes:
            target = request.split(b" ", 2)[1].decode()
            return f"HTTP/1.1 {status} Moved\r\nLocation: ws://{elsewhere}{target}\r\n\r\n".encode()

        with answering(redirect) as (address, asked), feeding(f"ws://{address}/") as (feed, _):
            wait_for(lambda: len(asked) >= 2, message="a second attempt")
            assert f"HTTP status {status}" in feed.last_error
        assert heard == []


def test_echoed_key_reaches_neither_health_page_nor_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with answering(lambda request: request) as (address, asked), feeding(f"ws://{address}/") as (feed, _):
        wait_for(lambda: feed.last_error)
        assert b"the%2Bkey" in asked[0]
        assert "key" not in feed.last_error.replace("apikey", "")
    assert "the%2Bkey" not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", [KEY, "the%2Bkey%2Fof%20us"])
def test_key_echoed_in_a_close_reason_is_masked(key: str) -> None:
    with sending(lambda connection: connection.close(1008, f"bad {key}!")) as url, feeding(url) as (_, queue):
        found = wait_for(lambda: causes(queue))
    assert "bad …!" in found[0]


def frame(opcode: int, length: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """A frame with a length that need not match its payload."""
    return bytes([(0x80 if final else 0) | opcode, 127]) + length.to_bytes(8, "big") + payload


def one_frame_without_end(connection: ServerConnection, count: Callable[[int], None]) -> None:
    connection.socket.sendall(frame(1, 2**62))
    while True:
        connection.socket.sendall(b"x" * 65_536)
        count(65_536)


def fragments_without_end(connection: ServerConnection, count: Callable[[int], None]) -> None:
    part = b"x" * 65_536
    connection.socket.sendall(frame(1, len(part), part, final=False))
    while True:
        connection.socket.sendall(frame(9, 4, b"ping") + frame(0, len(part), part, final=False))
        count(len(part))


@pytest.mark.parametrize("attack", [one_frame_without_end, fragments_without_end])
def test_endless_message_is_aborted_at_the_size_limit(
    attack: Callable[[ServerConnection, Callable[[int], None]], None],
) -> None:
    sent = 0

    def count(size: int) -> None:
        nonlocal sent
        sent += size
        if sent > TOO_MUCH:
            raise ConnectionError("the client did not hang up")

    def send(connection: ServerConnection) -> None:
        attack(connection, count)

    with sending(send) as url, feeding(url) as (_, queue):
        found = wait_for(lambda: causes(queue))
    assert "larger than" in found[0]
    assert sent <= TOO_MUCH


def test_message_of_maximum_size_is_accepted() -> None:
    event = b'{"event": "price", "symbol": "AAPL", "price": 1, "timestamp": 1, "note": "' + b"x" * 10**6 + b'"}'

    def send(connection: ServerConnection) -> None:
        for _ in range(8):
            connection.send(event, text=True)
        for _ in connection:  # until the feed closes it
            pass

    with sending(send) as url, feeding(url) as (feed, queue):
        wait_for(lambda: feed.received == 8)
        assert causes(queue) == []


def test_compressed_frame_closes_the_connection() -> None:
    """Compression was not negotiated, so no decompression bomb is ever unpacked."""
    with (
        sending(lambda connection: connection.socket.sendall(b"\xc1\x03abc" + b"\0" * 10)) as url,
        feeding(url) as (_, queue),
    ):
        assert "rsv" in wait_for(lambda: causes(queue))[0]
