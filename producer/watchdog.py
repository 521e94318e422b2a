"""Finds out whether a silent connection is dead."""

from __future__ import annotations

import math

from producer.config import FeedConfig
from producer.connection import DisconnectedError


class Watchdog:
    """Tells when a connection is dead, and when to send a ping, a heartbeat or a new subscription.

    Pure: all times are monotonic seconds. The feed sets `frame_at`, `event_at` and `price_at`: when the last frame of
    any kind, the last JSON event and the last price arrived.
    """

    def __init__(self, config: FeedConfig, now: float) -> None:
        self.frame_at = self.event_at = self.price_at = now
        self._config = config
        self._next_heartbeat = now + config.heartbeat_every
        self._pinged_at = self._heartbeat_at = -math.inf  # of the first ping or heartbeat that is not answered yet

    def check(self, now: float) -> None:
        """Raise DisconnectedError if the connection is dead."""
        silence = now - self.frame_at
        if silence > 2 * self._config.ping_after:
            raise DisconnectedError(f"nothing from the server for {silence:.0f} s, not even a pong")
        if now - self.event_at > self._config.vendor.silence:
            raise DisconnectedError("the server answers pings but sends no heartbeat: the feed is dead")
        if self._heartbeat_at > self.event_at and now - self._heartbeat_at > self._config.heartbeat_timeout:
            raise DisconnectedError("the server answers pings but no heartbeat: the feed is dead")

    def ping_due(self, now: float) -> bool:
        """Whether to send a ping: once in each silence of `ping_after` seconds."""
        due = now - self.frame_at > self._config.ping_after and self._pinged_at <= self.frame_at
        if due:
            self._pinged_at = now
        return due

    def heartbeat_due(self, now: float) -> bool:
        """Whether to ask for a heartbeat: every `heartbeat_every` seconds."""
        due = now >= self._next_heartbeat
        if due:
            self._next_heartbeat = now + self._config.heartbeat_every
            if self._heartbeat_at <= self.event_at:
                self._heartbeat_at = now
        return due

    def resubscribe_due(self, now: float) -> bool:
        """Whether to subscribe again: after `resubscribe_after` seconds without a price."""
        due = now - self.price_at > self._config.resubscribe_after
        if due:
            self.price_at = now
        return due
