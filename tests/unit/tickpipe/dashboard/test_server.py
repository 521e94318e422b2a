"""The dashboard's HTTP and websocket server under attack: foreign pages, slow and idle clients, endless bodies."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_websocket

from common import threads
from common.settings import Secret
from tests.support.waiting import PATIENCE, wait_for
from tickpipe import dashboard

pytest.importorskip("nicegui")

WEBSOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    """A dashboard whose Redis and database are unavailable."""
    from tickpipe.dashboard import server

    stop, started, urls = threading.Event(), threading.Event(), list[str]()

    def ready(url: str) -> None:
        urls.append(url)
        started.set()

    config = dashboard.DashboardConfig(
        redis_url=Secret("redis://127.0.0.1:1"),
        database_url=Secret("postgresql://127.0.0.1:1/none"),
        price_stream="prices",
        consumer_group="timescale",
        host="127.0.0.1",
        port=0,
        simulated=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "nice", lambda _: 0)  # the niceness would apply to all later tests
        for name, value in {"MAX_CONNECTIONS": 20, "MAX_WEBSOCKETS": 5, "MAX_PAGES": 10, "ANSWER_WITHIN": 3.0}.items():
            patch.setattr(server, name, value, raising=False)
        running = threads.in_thread(server.serve, config, stop, ready)
        assert started.wait(PATIENCE)
        url = urlsplit(urls[0])
        try:
            yield Address(str(url.hostname), url.port or 0)
        finally:
            stop.set()
            running.result(PATIENCE)


def connect(address: Address) -> socket.socket:
    client = socket.create_connection(address, timeout=PATIENCE)
    client.settimeout(PATIENCE)
    return client


def ask(address: Address, target: str, *headers: str, body: bytes = b"", method: str = "GET") -> tuple[int, str]:
    """Status and body of the answer."""
    with closing(connect(address)) as client:
        lines = [f"{method} {target} HTTP/1.1", "Connection: close", *headers, "", ""]
        answer = b""
        with suppress(ConnectionResetError, BrokenPipeError):
            client.sendall("\r\n".join(lines).encode() + body)
            while part := client.recv(65_536):
                answer += part
        head, _, rest = answer.partition(b"\r\n\r\n")
        return (int(head.split(b" ", 2)[1]) if head else 0), rest.decode(errors="replace")


def websocket_status(address: Address, *, host: str, origin: str | None) -> int:
    """The HTTP status that answers a websocket handshake."""
    headers = "" if origin is None else f"Origin: {origin}\r\n"
    with closing(connect(address)) as client:
        client.sendall(
            f"GET {WEBSOCKET} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}\r\n".encode()
        )
        return int(client.recv(1024).split(b" ", 2)[1])


def test_same_origin_pages_connect(address: Address) -> None:
    assert ask(address, "/", f"Host: {address}")[0] == 200
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{address.port}"
        assert websocket_status(address, host=host, origin=f"http://{host}") == 101
    assert websocket_status(address, host=str(address), origin=None) == 101  # not a browser


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", "file://"])
def test_cross_site_pages_reach_neither_websocket_nor_polling(address: Address, origin: str) -> None:
    assert websocket_status(address, host=str(address), origin=origin) == 403
    polling = WEBSOCKET.replace("transport=websocket", "transport=polling")
    for target in ("/", polling):
        assert ask(address, target, f"Host: {address}", f"Origin: {origin}")[0] == 403


def test_rebound_dns_name_is_refused(address: Address) -> None:
    for host in ("evil.example", f"evil.example:{address.port}", "127.0.0.1.evil.example", ""):
        assert ask(address, "/", f"Host: {host}")[0] == 400
    assert websocket_status(address, host="evil.example", origin="http://evil.example") == 403
    assert ask(address, "/", "Host: evil.example", "X-Forwarded-Host: 127.0.0.1")[0] == 400


def test_page_is_served_despite_many_idle_connections(address: Address) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connect(address))) for _ in range(60)]
        assert ask(address, "/", f"Host: {address}")[0] == 200
        assert idle[0].recv(1) == b""  # the oldest was closed


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_slow_client_is_disconnected(address: Address, sent: bytes) -> None:
    with closing(connect(address)) as client:
        client.sendall(sent)
        client.settimeout(0.1)

        def closed() -> bool:
            try:
                client.sendall(b"x")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True

        wait_for(closed)


def test_endless_head_is_refused(address: Address) -> None:
    with closing(connect(address)) as client, suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 100_000)
        assert b" 400 " in client.recv(65_536)


def test_endless_body_is_refused(address: Address) -> None:
    polling = WEBSOCKET.replace("transport=websocket", "transport=polling")
    part = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for target in ("/", polling):
        for length in ("Transfer-Encoding: chunked", "Content-Length: 1000000000000"):
            assert ask(address, target, f"Host: {address}", length, body=part * 64, method="POST")[0] != 200


def test_page_parameters_are_escaped_in_html(address: Address) -> None:
    attack = "</script><script>alert(1)</script>"
    status, text = ask(address, f"/?symbol={quote(attack)}&interval={quote(attack)}", f"Host: {address}")
    assert status == 200
    assert attack not in text


def test_websockets_and_pages_are_limited(address: Address) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect_websocket(f"ws://{address}{WEBSOCKET}"))
        with pytest.raises(InvalidStatus):
            connect_websocket(f"ws://{address}{WEBSOCKET}")
    assert 503 in [ask(address, "/", f"Host: {address}")[0] for _ in range(20)]


def test_huge_message_closes_only_its_websocket(address: Address) -> None:
    def connected() -> bool:
        with suppress(InvalidStatus):
            with connect_websocket(f"ws://{address}{WEBSOCKET}") as client, suppress(ConnectionClosed):
                client.send("4" + "x" * 2**21)
                while True:
                    client.recv(PATIENCE)
            return True
        return False

    wait_for(connected)
    assert websocket_status(address, host=str(address), origin=None) == 101
