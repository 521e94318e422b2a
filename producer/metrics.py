"""The producer's Prometheus metrics and health, as documented in docs/metrics.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.registry import Collector

from common.metrics import Health, metric
from producer.feed import Feed
from producer.publisher import Publisher
from producer.spool import Spool
from producer.streams import Streams


class ProducerMetrics(Collector):
    """Reads the counters of feed, publisher, spool and streams."""

    def __init__(
        self,
        feed: Feed,
        publisher: Publisher,
        spool: Spool,
        paths: Mapping[str, Streams],
        *,
        unhealthy_after: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`paths`: the streams by the path that prices take to them. `unhealthy_after` and `monotonic` in seconds."""
        self._feed = feed
        self._publisher = publisher
        self._spool = spool
        self._paths = paths
        self._unhealthy_after = unhealthy_after
        self._monotonic = monotonic

    def health(self) -> Health:
        """Unhealthy if the server is silent or prices are lost; a quiet market and spooling are healthy."""
        feed, publisher, now = self._feed, self._publisher, self._monotonic()
        reasons = []
        if (silence := now - feed.heard_at) > self._unhealthy_after:
            cause = feed.last_error or "no connection yet"
            reasons.append(f"no message from {feed.config.host} for {silence:.0f} s: {cause}")
        if now - feed.lost_at < self._unhealthy_after:
            reasons.append(f"the queue is full (--queue-max): {feed.lost:,} price events lost so far")
        if now - publisher.refused_at < self._unhealthy_after:
            reasons.append(f"{publisher.refused}: {publisher.lost:,} price events lost so far")
        waiting = self._spool.entries
        return Health(reasons, [f"spooling: {waiting:,} entries wait on disk for Redis"] if waiting else [])

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
        feed, publisher = self._feed, self._publisher
        appended = {path: streams.appended for path, streams in self._paths.items()}
        lost = {"queue": feed.lost, "spool": publisher.lost}
        reconnects = max(0, feed.connections - 1)
        yield metric("tickpipe_events_received_total", "Prices received from the websocket.", feed.received)
        yield metric("tickpipe_events_appended_total", "Prices that Redis has acknowledged.", appended, "path")
        yield metric("tickpipe_events_lost_total", "Prices for which there was no room.", lost, "where")
        yield metric("tickpipe_entries_spooled_total", "Entries of both streams put in the spool.", publisher.spooled)
        yield metric("tickpipe_spool_entries", "Entries of both streams that wait in the spool.", self._spool.entries)
        yield metric("tickpipe_feed_connected", "1 while the websocket is open.", feed.connected)
        yield metric("tickpipe_feed_reconnects_total", "Websockets opened after the first one.", reconnects)
        yield metric("tickpipe_frames_skipped_total", "Frames that were not a JSON object.", feed.skipped_frames)
        yield metric("tickpipe_healthy", "1 while /healthz says 200, 0 while it says 503.", not self.health().reasons)
