"""Serves /metrics for Prometheus and /healthz for health checks over HTTP.

This module counts nothing. A collector reads the process's own counters at each scrape.
"""

from __future__ import annotations

import io
import logging
import math
import re
import socket
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from common.errors import ConfigurationError
from common.http_guard import RequestGuard

logger = logging.getLogger("common.metrics")

#: Connections that are open at the same time, at most.
MAX_CLIENTS = 32
#: Seconds from a connection's start to the end of its answer, at most.
ANSWER_WITHIN = 5.0
#: Bytes of a request line and its headers, at most.
MAX_HEAD = 16_384
_HEAD_END = re.compile(rb"\r?\n\r?\n")


class Health(NamedTuple):
    """Health of a process: healthy if `reasons` is empty. `notes` are further lines of the answer."""

    reasons: Sequence[str]
    notes: Sequence[str] = ()


def metric(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    """A metric with one value, or with one for each value of its label. A name that ends in `_total` is a counter."""
    made = Metric(name.removesuffix("_total"), text, "counter" if name.endswith("_total") else "gauge")
    for each, number in (value if isinstance(value, Mapping) else {"": value}).items():
        made.add_sample(name, {label: each} if label else {}, number)
    return made


class Distribution:
    """A histogram that takes many equal observations in one step. One thread observes, any thread may read."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """`bounds`: upper bounds of the buckets, ascending, without infinity."""
        self._name = name
        self._text = text
        self._bounds = [*bounds, math.inf]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` this many `times`."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def metric(self) -> Metric:
        """The observations so far."""
        buckets = list(zip(map(floatToGoString, self._bounds), accumulate(self._counts), strict=True))
        return HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class Server(ThreadingTCPServer):
    """One port for both paths. The constructor opens the port, and `serve` starts to answer.

    Clients are bounded in number and in time: a new one closes the oldest that has not sent its request yet.
    """

    allow_reuse_address = True  # else a restart would wait for the last scrape's connection to be forgotten
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, allowed_hosts: Iterable[str] = ()) -> None:
        """Raises ConfigurationError if the port cannot be opened."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.guard = RequestGuard(host, allowed_hosts)
        self._clients: dict[socket.socket, _Client] = {}
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigurationError(f"--metrics-port {port} on {host} cannot be opened: {error.strerror}") from None

    def serve(self, collector: Collector, health: Callable[[], Health]) -> None:
        """Answer in daemon threads from now on."""
        self.registry = CollectorRegistry(auto_describe=True)
        self.registry.register(collector)
        self.health = health
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()
        logger.info("metrics: serving /metrics and /healthz at %s, port %d", *self.server_address[:2])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room for the client, then serve it in a thread."""
        with self._lock:
            if len(self._clients) >= MAX_CLIENTS:
                self._disconnect(min(self._clients, key=lambda each: self._clients[each]))
            self._clients[request] = _Client(has_asked=False, since=time.monotonic())
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Disconnect clients that take too long. The base class calls this twice a second."""
        overdue = time.monotonic() - ANSWER_WITHIN
        with self._lock:
            for client in [client for client, state in self._clients.items() if state.since < overdue]:
                self._disconnect(client)

    def has_asked(self, request: socket.socket) -> None:
        """Record that this client has sent its request."""
        with self._lock:
            if request in self._clients:
                self._clients[request] = self._clients[request]._replace(has_asked=True)

    def close_request(self, request: Any) -> None:
        """Close the connection."""
        with self._lock:
            self._clients.pop(request, None)
        super().close_request(request)

    def _disconnect(self, client: socket.socket) -> None:
        """End what the client's thread waits for; the thread then closes the connection."""
        self._clients.pop(client)
        with suppress(OSError):  # the client has left
            client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, _request: object, client_address: object) -> None:
        """Log one line instead of a traceback. A client that left is logged for DEBUG only: it could fill the log."""
        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.WARNING
        logger.log(level, "no answer to %s: %r", client_address, error)


class _Client(NamedTuple):
    """A connection's state. The smallest is the first to be closed: no request yet, then the oldest."""

    has_asked: bool
    since: float


class _Handler(MetricsHandler):
    server: Server
    timeout = ANSWER_WITHIN
    server_version, sys_version = "tickpipe", ""

    def setup(self) -> None:
        """Read the request's head, bounded as a whole."""
        super().setup()
        head = b""
        while not _HEAD_END.search(head) and len(head) <= MAX_HEAD:
            if not (part := self.request.recv(4096)):
                head = b""
                break
            head += part
        self._too_large = len(head) > MAX_HEAD
        self.rfile = io.BytesIO(head)
        self.server.has_asked(self.request)

    def parse_request(self) -> bool:
        """Whether to answer the request."""
        if not super().parse_request():
            return False
        if self._too_large:
            self._answer(431, [f"the request's head is longer than {MAX_HEAD} bytes"])
            return False
        refused = self.server.guard.refusal(self.headers.get_all("Host", []), self.headers.get_all("Origin", []))
        if refused:
            status, reason = refused
            self._answer(status, [reason])
        return not refused

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self.registry = self.server.registry
            super().do_GET()
        elif path == "/healthz":
            reasons, notes = self.server.health()
            self._answer(503 if reasons else 200, [*(reasons or ["ok"]), *notes])
        else:
            self._answer(404, ["not found: use /metrics or /healthz"])

    def _answer(self, status: int, lines: Sequence[str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write("".join(f"{' '.join(line.split())}\n" for line in lines).encode())
