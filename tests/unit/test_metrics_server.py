"""The HTTP server of /metrics and /healthz under attack: foreign pages, slow and idle clients, headers without end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from prometheus_client import Metric
from prometheus_client.registry import Collector

from common import metrics
from common.metrics import Health, Server, metric
from tests.support.waiting import PATIENCE, wait_for

#: A body larger than what the kernel buffers for one connection on the loopback.
LARGE = 8 * 1024 * 1024


class Figures(Collector):
    """One metric, with a help text of any length."""

    text = "Text."

    def collect(self) -> Iterator[Metric]:
        yield metric("a_total", self.text, 1)


@pytest.fixture
def figures() -> Figures:
    return Figures()


@pytest.fixture
def server(figures: Figures) -> Iterator[Server]:
    with Server("127.0.0.1", 0) as server:
        server.serve(figures, lambda: Health([]))
        yield server
        server.shutdown()


def connect(server: Server, *, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", server.server_address[1]))
    return client


def read_all(client: socket.socket) -> bytes:
    """All bytes that the server sends until it closes the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while part := client.recv(65_536):
            received += part
    return received


def status(server: Server, *headers: str, path: str = "/metrics") -> int:
    """The status that answers a request with these headers."""
    with closing(connect(server)) as client:
        client.sendall("\r\n".join([f"GET {path} HTTP/1.1", *headers, "", ""]).encode())
        return int(read_all(client).split(b" ", 2)[1])


def threads() -> int:
    """Threads that serve a connection."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9464", "localhost:9464", "LOCALHOST", "[::1]:9464"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_requests_to_a_loopback_name_are_answered(server: Server, host: str, path: str) -> None:
    assert status(server, f"Host: {host}", path=path) == 200
    assert status(server, f"Host: {host}", f"Origin: http://{host}", path=path) == 200


@pytest.mark.parametrize(
    "headers",
    [
        ["Host: evil.example"],
        ["Host: evil.example:9464"],
        ["Host: localhost.evil.example"],
        ["Host: 127.0.0.1.evil.example"],
        ["Host: 127.0.0.1@evil.example"],
        ["Host: evil.example#@127.0.0.1"],
        ["Host: 192.0.2.7"],
        ["Host: "],
        [],
        ["Host: 127.0.0.1", "Host: evil.example"],
        ["Host: evil.example", "X-Forwarded-Host: 127.0.0.1"],
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_requests_to_another_host_are_refused(server: Server, headers: list[str], path: str) -> None:
    assert status(server, *headers, path=path) == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", "", "x"])
def test_requests_from_another_site_are_refused(server: Server, origin: str) -> None:
    assert status(server, "Host: 127.0.0.1:9464", f"Origin: {origin}") == 403


def test_scrapes_are_answered_beside_hundreds_of_idle_connections_and_threads_stay_bounded(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.callback(connect(server).close)
        assert status(server, "Host: 127.0.0.1") == 200
        wait_for(lambda: threads() <= metrics.MAX_CLIENTS)


def test_idle_connections_are_closed_before_one_that_is_being_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering, go_on = threading.Event(), threading.Event()

    def health() -> Health:
        answering.set()
        go_on.wait(PATIENCE)
        return Health([])

    monkeypatch.setattr(server, "health", health)
    with ExitStack() as stack:
        client = stack.enter_context(closing(connect(server)))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answering.wait(PATIENCE)
        idle = [stack.enter_context(closing(connect(server))) for _ in range(200)]
        assert read_all(idle[0]) == b""  # the oldest idle one made room
        go_on.set()
        assert b" 200 " in read_all(client)


@pytest.mark.parametrize("head", [b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 50_000, b"GET /" + b"x" * 300_000])
def test_a_head_without_end_is_refused_early(server: Server, head: bytes) -> None:
    with closing(connect(server)) as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(head)
        read_all(client)  # returns only if the server closes the connection
    assert status(server, "Host: 127.0.0.1") == 200


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_client_that_trickles_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """Each byte is in time for a timeout that counts from byte to byte."""
    monkeypatch.setattr(metrics, "ANSWER_WITHIN", 1.0)
    with closing(connect(server)) as client:
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


def test_a_client_that_does_not_read_is_cut_off(
    server: Server, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "ANSWER_WITHIN", 1.0)
    figures.text = "x" * LARGE
    with closing(connect(server, receive_buffer=2048)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        client.recv(1)
        wait_for(lambda: threads() == 0)
    figures.text = "Text."
    assert status(server, "Host: 127.0.0.1") == 200


def test_a_request_body_is_not_read(server: Server) -> None:
    with closing(connect(server)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000000\r\n\r\nabc")
        assert b" 200 " in read_all(client)


def test_no_answer_names_the_python_version(server: Server) -> None:
    for request in (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
        with closing(connect(server)) as client:
            client.sendall(request)
            assert b"python" not in read_all(client).lower()


def test_a_port_on_all_addresses_answers_to_addresses_local_names_and_named_hosts() -> None:
    with Server("0.0.0.0", 0, allowed_hosts=["ticks.example.com"]) as server:
        server.serve(Figures(), lambda: Health([]))
        for host in (
            "192.0.2.7:9464",
            "[2001:db8::1]",
            "consumer:9464",
            "tp.ns.svc.cluster.local",
            "ticks.example.com",
        ):
            assert status(server, f"Host: {host}") == 200
        for host in ("evil.example", "www.ticks.example.com", "consumer.evil.example"):
            assert status(server, f"Host: {host}") == 400
        server.shutdown()


def test_a_head_just_above_the_bound_is_refused_with_its_status(server: Server) -> None:
    assert status(server, "Host: 127.0.0.1", "X: " + "y" * (metrics.MAX_HEAD - 100)) == 200
    assert status(server, "Host: 127.0.0.1", "X: " + "y" * metrics.MAX_HEAD) == 431
