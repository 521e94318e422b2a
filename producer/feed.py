"""Receives a vendor's websocket: one thread, one connection at a time, reconnecting for as long as it takes.

The differences between vendors are in `producer/feeds/`. Twelve Data's wrapper provides messages. Its connection
handling is not used, because it opens overlapping connections, blocks in the handshake, retries a refused key forever
and drops events without counting them (docs/adr/0001-we-drive-the-connection-ourselves.md).
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from urllib.parse import quote

import websocket
from websocket import ABNF

from common.errors import ConfigurationError, TickpipeError
from common.settings import Secret
from producer.channel import Channels
from producer.config import FeedConfig, host_of
from producer.connection import ClosedByServerError, Connection, DisconnectedError, cause, first_failure
from producer.feeds.vendor import Event, SubscribeStatus, decode_frame, plain
from producer.queue import EventQueue
from producer.reconnect import Reconnect
from producer.subscription import Subscription
from producer.trade_numbers import NEXT, TradeNumbers
from producer.watchdog import Watchdog

logger = logging.getLogger("producer.feed")

#: A shorter key cannot be one of the vendor's. Removing it would garble the text around it.
SHORTEST_KEY = 8
#: Seconds between the periodic tasks.
TASKS_EVERY = 0.25


class RefusedKeyError(ConfigurationError):
    """The vendor refuses the API key."""


class NothingSubscribedError(ConfigurationError):
    """None of the symbols can be subscribed."""


class Feed:
    """Numbers price events and puts them into the queues, along with feed events on the state of the connection.

    Each channel has a queue. The state of the connection is recorded in each of them, with the same time.
    """

    def __init__(
        self,
        config: FeedConfig,
        *,
        api_key: Callable[[], Secret],
        symbols: Iterable[str],
        queues: Sequence[EventQueue],
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """One queue for each channel. `api_key` is called for each connection.

        `clock` gives microseconds UTC, `monotonic` seconds.
        """
        self.config = config
        self.channels = Channels(config, queues, clock)
        self.received = self.lost = 0  # price events, over all sessions
        self.repeated = 0  # trades that were received before; they are not counted as received again
        self.connections = self.skipped_frames = 0
        self.heard_at = monotonic()  # when the last event of the server arrived; a pong is not an event
        self.lost_at = -math.inf
        self.last_error = ""  # why the last connection ended
        self._api_key = api_key
        self._key = Secret("")  # the one that was sent last
        self._clock, self._monotonic = clock, monotonic
        self._reconnect = Reconnect(rng or random.Random())  # noqa: S311  for jitter, not for secrets
        self._vendor = config.vendor
        self._urls = deque(config.urls)  # the first is the one in use
        self._subscription = Subscription(config.vendor, symbols)
        self._connection: Connection | None = None
        self.numbers = TradeNumbers()
        self._watchdog = Watchdog(config, self.heard_at)
        self._ever_connected = self._ever_subscribed = False
        self._refused: set[str] = set()  # before the first subscription
        self._last_frame = 0  # microseconds UTC, of the open or the last connection
        self._stopped_at: int | None = None  # the last frame of the connection that was open at shutdown
        self._was_subscribed = False  # on the open or the last connection
        self._next_tasks = self._next_alive = 0.0

    @property
    def connected(self) -> bool:
        """Whether a connection is open. Callable from any thread."""
        return self._connection is not None

    def set_symbols(self, symbols: Iterable[str]) -> None:
        """Subscribe exactly these symbols, on the open connection. Callable from any thread."""
        self._subscription.set_wanted(symbols)

    def run(self, stop: threading.Event) -> None:
        """Receive until `stop` is set. Raises ConfigurationError if no further attempt can succeed."""
        self.channels.begin(self._clock(), self._subscription.wanted)
        refusals = 0
        try:
            while not stop.is_set():
                began = self._monotonic()
                try:
                    self._receive(stop)
                except RefusedKeyError as error:
                    refusals += 1
                    if not self._ever_connected and refusals >= self.config.key_tries:
                        raise
                    self._pause(stop, error, lasted=0.0, evicted=False)
                except (DisconnectedError, websocket.WebSocketException, OSError) as error:
                    refusals = 0
                    evicted = isinstance(error, ClosedByServerError) and error.may_be_eviction and self._was_subscribed
                    self._pause(stop, error, lasted=self._monotonic() - began, evicted=evicted)
        finally:
            self.channels.report_lost()
            # Closing takes a round trip in which prices are not received: the gap begins at the last frame.
            at = max(self._stopped_at, self.channels.began) if self._stopped_at else self._clock()
            self.channels.checkpoint("stopped", at)

    # --- Connection

    def _receive(self, stop: threading.Event) -> None:
        """Open a connection and receive until `stop` is set. Raises an error if the connection ends before."""
        connection = self._open()
        try:
            while not stop.is_set():
                now = self._monotonic()
                if now >= self._next_tasks:
                    self._run_periodic_tasks(connection, now)
                if (text := connection.next_text()) is not None:
                    self._on_frame(ABNF.OPCODE_TEXT, text)
                    continue
                if self.channels.above_watermark:
                    # Frames are decoded faster than they are published, and both threads share one interpreter. The
                    # kernel buffers the rest. One pause for each READ_AHEAD allows about 50,000 prices a second.
                    time.sleep(0.005)
                if received := connection.receive():
                    self._on_frame(*received)
            self._stopped_at = self._last_frame
        except (DisconnectedError, websocket.WebSocketException, OSError) as error:
            self.channels.report_lost()
            self.channels.emit(
                "disconnected", self._clock(), cause=self._without_key(cause(error)), last_frame=self._last_frame
            )
            raise
        finally:
            self._connection = None
            self._subscription.accepted = ()
            connection.disconnect(graceful=stop.is_set())

    def _open(self) -> Connection:
        self._was_subscribed = False
        try:
            self._key = self._api_key()
        except ConfigurationError as error:
            if not self._ever_connected:
                raise
            raise DisconnectedError(str(error)) from None  # the key's file may be in the middle of a rotation
        try:
            self._connection = connection = Connection.open(
                self._vendor.address(self._urls[0], self._key.reveal()),
                timeout=self.config.handshake_timeout,
                proxy=self.config.proxy,
                first_message=self._subscription.subscribe_all(),
            )
        except websocket.WebSocketBadStatusException as error:
            raise self._refusal(error.status_code) from None
        except OSError as error:
            if self._ever_connected:
                raise
            raise first_failure(error, self._urls[0], self._route) from None
        self._ever_connected = True
        self.connections += 1
        self._watchdog = Watchdog(self.config, self._monotonic())
        self._last_frame = self._clock()
        self.channels.emit("connected", self._clock(), host=self._host)
        logger.info("connected to %s: subscribing to %d symbols", self._host, len(self._subscription.wanted))
        return connection

    @property
    def _host(self) -> str:
        return host_of(self._urls[0])

    def _refusal(self, status: int) -> TickpipeError:
        """The error for an HTTP status that is the answer to a handshake. Perhaps another address is tried next."""
        if self._vendor.needs_key and status in {200, 401, 403}:  # Twelve Data answers a wrong key with a page and 200
            return RefusedKeyError(f"{self._vendor.title} refuses the API key: check TWELVE_DATA_API_KEY.{self._route}")
        message = f"the server answered the handshake with HTTP status {status}"
        if status == HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS:
            message = f"{self._host} refuses connections from your region (HTTP status {status})"
        self._urls.rotate(-1)
        return DisconnectedError(message)

    @property
    def _route(self) -> str:
        """The proxy, for error messages, or ""."""
        return f" (through {self.config.proxy})" if self.config.proxy else ""

    def _without_key(self, text: str) -> str:
        """The text without the API key: a server may echo the request."""
        key = self._key.reveal()
        for form in (key, quote(key, safe="")) if len(key) >= SHORTEST_KEY else ():
            text = text.replace(form, "…")
        return text

    def _pause(self, stop: threading.Event, error: Exception, *, lasted: float, evicted: bool) -> None:
        """Wait before the next connection, while sessions and `alive` events go on."""
        delay = self._reconnect.after(lasted=lasted, evicted=evicted)
        if self._reconnect.evictions == Reconnect.EVICTIONS:
            logger.error(
                "the server has closed the connection %d times soon after subscribing%s", Reconnect.EVICTIONS,
                ": is another program using this API key? A plan has 1 connection (Basic, Grow) or 3 (Pro), and one "
                "more closes the oldest" if self._vendor.needs_key else "",
            )  # fmt: skip
        route = "" if isinstance(error, RefusedKeyError) else self._route
        self.last_error = f"{self._without_key(cause(error))}{route}"
        logger.warning("%s; next try in %.1f s", self.last_error, delay)
        until = self._monotonic() + delay
        while not stop.is_set() and (now := self._monotonic()) < until:
            self._keep_sessions(now)
            stop.wait(min(TASKS_EVERY, until - now))

    def _run_periodic_tasks(self, connection: Connection, now: float) -> None:
        self._next_tasks = now + TASKS_EVERY
        self._keep_sessions(now)
        self._sync_subscriptions(connection)
        self._watchdog.check(now)
        if self._watchdog.ping_due(now):
            connection.ping()
        if self._vendor.heartbeat and self._watchdog.heartbeat_due(now):
            connection.send(self._vendor.heartbeat)
        if self._watchdog.resubscribe_due(now):
            logger.info("no price of any symbol for %.0f s: subscribing again", self.config.resubscribe_after)
            connection.send(self._subscription.subscribe_all())

    def _sync_subscriptions(self, connection: Connection) -> None:
        if self._subscription.changed:
            if dropped := self._subscription.drop_unwanted():
                self.numbers.forget(dropped)
                self.channels.emit_symbols("unsubscribed", self._clock(), dropped)
            for message in self._subscription.update():
                connection.send(message)

    # --- Frames

    def _on_frame(self, opcode: int, data: bytes) -> None:
        self._watchdog.frame_at = self._monotonic()
        if opcode == ABNF.OPCODE_TEXT:
            event = decode_frame(data)
            if event is not None:
                self.on_event(event)
                return
        elif opcode == ABNF.OPCODE_CLOSE:
            raise ClosedByServerError(data)
        elif opcode in {ABNF.OPCODE_PING, ABNF.OPCODE_PONG}:
            return
        self.skipped_frames += 1
        logger.warning("skipped a frame that is not a JSON object: %r", bytes(data[:80]))

    def on_event(self, message: Event) -> None:
        """Number the price events and put them into queues. Nothing else happens in the websocket's thread."""
        now = self._last_frame = self._clock()
        watchdog = self._watchdog
        self.heard_at = watchdog.event_at = watchdog.frame_at
        prices = self._vendor.prices(message, self._subscription.symbols)
        if not prices:
            self._roll_over_if_due(now)
            self._on_message(message, now)
        for event in prices:
            numbered = self.numbers.check(event, now) if self._vendor.has_trades else NEXT
            if numbered.repeated:
                self.repeated += 1
                continue
            channel = self.channels.of(event)
            if channel.session.is_over(now):
                self._roll_over(now)
            watchdog.price_at = watchdog.frame_at
            self.received += 1
            if not channel.put(event, now):
                self.lost += 1
                self.lost_at = watchdog.frame_at
            if numbered.skipped:
                channel.session.emit("skipped", now, **numbered.skipped)

    def _on_message(self, message: Event, now: int) -> None:
        """Handle a message that has no price."""
        if (status := self._vendor.answer(message, self._subscription.symbols)) is not None:
            self._on_subscribe_status(status)
        elif (last := self._vendor.last_trade(message, self._subscription.symbols)) is not None:
            if skipped := self.numbers.announce(last, now):
                self.channels.of(last).session.emit("skipped", now, **skipped)
        else:
            level = logging.WARNING if self._vendor.is_error(message) else logging.DEBUG
            logger.log(level, "message from the server: %s", plain(message))

    def _on_subscribe_status(self, status: SubscribeStatus) -> None:
        refused = status.refused
        if status.error and not refused and not status.accepted:
            refused = dict.fromkeys(self._subscription.unanswered, status.error)
        refused = {symbol: self._without_key(reason) for symbol, reason in refused.items()}
        if refused:
            reasons = "; ".join(f"{symbol} ({reason})" for symbol, reason in sorted(refused.items()))
            logger.warning("refused by the server: %s", reasons)
            self.channels.emit_symbols("refused", self._clock(), refused)
        if status.accepted:
            self._was_subscribed = True
            self._ever_subscribed = True
            self._subscription.accept(status.accepted)
            self.channels.emit_symbols("subscribed", self._clock(), status.accepted)
            logger.info("subscribed: %s", ", ".join(status.accepted))
        elif refused and not self._ever_subscribed and self._all_refused(refused):
            raise NothingSubscribedError(f"none of the symbols can be subscribed: {reasons}. Check --symbols")

    def _all_refused(self, refused: Iterable[str]) -> bool:
        self._refused.update(refused)
        return not self._vendor.answers_each or self._refused >= self._subscription.wanted

    # --- Sessions

    def _keep_sessions(self, monotonic: float) -> None:
        """Begin new sessions if the current ones are over, and emit `alive` when it is due."""
        now = self._clock()
        self._roll_over_if_due(now)
        if monotonic >= self._next_alive:
            self._next_alive = monotonic + self.config.alive_every
            self.channels.report_lost()
            self.channels.checkpoint("alive", now, connected=self.connected)

    def _roll_over_if_due(self, now: int) -> None:
        if any(channel.session.is_over(now) for channel in self.channels):
            self._roll_over(now)

    def _roll_over(self, now: int) -> None:
        """Begin new sessions on the same connection: the UTC day has ended, or the clock has gone back."""
        self.channels.report_lost()
        self._last_frame = min(self._last_frame, now)  # a time ahead of the clock would hide a gap that begins now
        begin = self.channels.roll_over(now, self._subscription.wanted)
        if self.connected:  # from the same moment on, so that no gap is recorded
            self.channels.emit("connected", begin, host=self._host)
            self.channels.emit_symbols("subscribed", begin, self._subscription.accepted)
