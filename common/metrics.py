"""What a process tells over HTTP: /metrics for Prometheus, /healthz for whoever asks whether it can do its work.

Nothing is counted here: a collector reads what the process counts anyway, at the moment it is asked.
"""

from __future__ import annotations

import logging
import math
import socket
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from socketserver import ThreadingTCPServer
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from common.errors import ConfigurationError

logger = logging.getLogger("common.metrics")


class Health(NamedTuple):
    """Why a process cannot do its work, one line a reason; none: it can. `notes` are what else is worth a line."""

    reasons: Sequence[str]
    notes: Sequence[str] = ()


def metric(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    """A metric with its value, or with one for each value of its label. `_total` in its name makes it a counter."""
    made = Metric(name.removesuffix("_total"), text, "counter" if name.endswith("_total") else "gauge")
    for each, number in (value if isinstance(value, Mapping) else {"": value}).items():
        made.add_sample(name, {label: each} if label else {}, number)
    return made


class Distribution:
    """A histogram that takes many equal observations in one step. One thread observes, any may ask."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """`bounds` are the upper ends of the buckets, rising, without infinity."""
        self._name = name
        self._text = text
        self._bounds = [*bounds, math.inf]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def metric(self) -> Metric:
        """What was observed so far."""
        buckets = list(zip(map(floatToGoString, self._bounds), accumulate(self._counts), strict=True))
        return HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class Server(ThreadingTCPServer):
    """One port for both paths. It takes the port when made, and answers from `serve` on."""

    allow_reuse_address = True  # else a restart would wait for the last scrape's connection to be forgotten
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        """Raises ConfigurationError where the port cannot be had."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigurationError(f"--metrics-port {port} on {host} cannot be opened: {error.strerror}") from None

    def serve(self, collector: Collector, health: Callable[[], Health]) -> None:
        """Answer from now on, in threads that do not keep the process alive."""
        self.registry = CollectorRegistry(auto_describe=True)
        self.registry.register(collector)
        self.health = health
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()
        logger.info("/metrics and /healthz are at %s, port %d", *self.server_address[:2])

    def handle_error(self, _request: object, client_address: object) -> None:
        """One line instead of a traceback: mostly it is a client that has gone."""
        logger.warning("no answer to %s: %r", client_address, sys.exc_info()[1])


class _Handler(MetricsHandler):
    server: Server
    timeout = 5.0  # seconds: a client that says nothing does not hold a thread

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self.registry = self.server.registry
            super().do_GET()
        elif path == "/healthz":
            reasons, notes = self.server.health()
            self._answer(503 if reasons else 200, [*(reasons or ["ok"]), *notes])
        else:
            self._answer(404, ["there are /metrics and /healthz"])

    def _answer(self, status: int, lines: Sequence[str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write("".join(f"{' '.join(line.split())}\n" for line in lines).encode())
