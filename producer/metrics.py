"""The producer's Prometheus metrics and health, as documented in docs/metrics.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.registry import Collector

from common.errors import OutageError
from common.metrics import Health, metric
from producer.delivery import Delivery
from producer.feed import Feed

_ACTIVE = "1 while this producer is active, 0 while it waits for the lease."
_HEALTHY = "1 while /healthz says 200, 0 while it says 503."


class ActiveProducer(Collector):
    """The metrics and the health of the current run, or of a producer that waits for the lease."""

    def __init__(self, holder: Callable[[], str | None] | None) -> None:
        """`holder` gives the name of the active producer, if there is one; it may raise OutageError. None: no lease."""
        self._holder = holder
        self._metrics: ProducerMetrics | None = None
        self._reread_symbols: Callable[[], None] = lambda: None

    def begin(self, run: ProducerMetrics, reread_symbols: Callable[[], None]) -> None:
        """This process is the active producer."""
        self._metrics, self._reread_symbols = run, reread_symbols

    def end(self) -> None:
        """This process waits for the lease."""
        self._metrics, self._reread_symbols = None, lambda: None

    def reread_symbols(self) -> None:
        """Subscribe what the configuration names now. The next run reads it anyway."""
        self._reread_symbols()

    def health(self) -> Health:
        """The health of the run. A producer that waits is healthy."""
        if run := self._metrics:
            reasons, notes = run.health()
            return Health(reasons, [*notes, "active: this producer has the lease"] if self._holder else notes)
        try:
            holder = self._holder() if self._holder else None
        except OutageError as error:
            return Health([], [f"standby: {error}"])
        return Health([], [f"standby: {holder} is active" if holder else "standby: no producer is active"])

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
        if run := self._metrics:
            yield from run.collect()
        else:
            yield metric("tickpipe_producer_active", _ACTIVE, value=False)
            yield metric("tickpipe_healthy", _HEALTHY, value=True)


class ProducerMetrics(Collector):
    """Reads the counters of the feed, and the sums over the channels."""

    def __init__(
        self,
        feed: Feed,
        deliveries: Sequence[Delivery],
        orphans: Callable[[], int],
        *,
        unhealthy_after: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`orphans`: prices appended from spools of dead producers. `unhealthy_after` and `monotonic` in seconds."""
        self._feed = feed
        self._publishers = [delivery.publisher for delivery in deliveries]
        self._spools = [delivery.spool for delivery in deliveries]
        self._paths = [delivery.paths for delivery in deliveries]
        self._orphans = orphans
        self._unhealthy_after = unhealthy_after
        self._monotonic = monotonic

    def health(self) -> Health:
        """Unhealthy if the server is silent or prices are lost; a quiet market and spooling are healthy."""
        feed, now = self._feed, self._monotonic()
        reasons = []
        if (silence := now - feed.heard_at) > self._unhealthy_after:
            cause = feed.last_error or "no connection yet"
            reasons.append(f"no message from {feed.config.host} for {silence:.0f} s: {cause}")
        if now - feed.lost_at < self._unhealthy_after:
            reasons.append(f"the queue is full (--queue-max): {feed.lost:,} price events lost so far")
        last = max(self._publishers, key=lambda publisher: publisher.refused_at)
        if now - last.refused_at < self._unhealthy_after:
            reasons.append(f"{last.refused}: {self._lost_by_spools:,} price events lost so far")
        if not (waiting := sum(spool.entries for spool in self._spools)):
            return Health(reasons, [])
        waits_for = "replicas of Redis" if all(spool.all_appended for spool in self._spools) else "Redis"
        return Health(reasons, [f"spooling: {waiting:,} entries wait on disk for {waits_for}"])

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
        feed = self._feed
        appended = {path: sum(paths[path].appended for paths in self._paths) for path in ("direct", "spool")}
        appended["orphan"] = self._orphans()
        lost = {"queue": feed.lost, "spool": self._lost_by_spools}
        spooled = sum(publisher.spooled for publisher in self._publishers)
        entries = sum(spool.entries for spool in self._spools)
        reconnects = max(0, feed.connections - 1)
        yield metric("tickpipe_events_received_total", "Prices received from the websocket.", feed.received)
        yield metric("tickpipe_trades_repeated_total", "Trades that were received before: not stored.", feed.repeated)
        yield metric("tickpipe_events_appended_total", "Prices that Redis has acknowledged.", appended, "path")
        yield metric(
            "tickpipe_events_lost_total", "Prices lost because the queue or the spool was full.", lost, "where"
        )
        yield metric("tickpipe_entries_spooled_total", "Entries of both streams put in the spool.", spooled)
        yield metric("tickpipe_spool_entries", "Entries of both streams that wait in the spool.", entries)
        yield metric("tickpipe_feed_connected", "1 while the websocket is open.", feed.connected)
        yield metric("tickpipe_feed_reconnects_total", "Websockets opened after the first one.", reconnects)
        yield metric("tickpipe_frames_skipped_total", "Frames that were not a JSON object.", feed.skipped_frames)
        yield metric("tickpipe_producer_active", _ACTIVE, value=True)
        yield metric("tickpipe_healthy", _HEALTHY, not self.health().reasons)

    @property
    def _lost_by_spools(self) -> int:
        return sum(publisher.lost for publisher in self._publishers)
