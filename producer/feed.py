"""Twelve Data's websocket, made dependable: numbering, heartbeat, watchdog, reconnect, entitlement errors.

The vendor's wrapper gives the protocol (its URL, its subscribe and heartbeat messages, what is subscribed). Its
connection handling is not used: it overlaps connections, hangs in the handshake, retries a refused key for ever and
drops events without a count (docs/adr/0001). One thread, one connection at a time.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import cast
from urllib.parse import quote

import websocket
from websocket import ABNF

from common import tls
from common.docstrings import docstring
from common.errors import ConfigurationError, TickpipeError, UntrustedError
from common.settings import Secret
from producer.config import FeedConfig
from producer.connection import ClosedByServerError, DisconnectedError, _Client
from producer.feeds import twelvedata
from producer.queue import EventQueue
from producer.reconnect import Reconnect
from producer.session import PriceEvent, Session, overflow

logger = logging.getLogger("producer.feed")
#: A shorter key is not a secret of the vendor's, and hiding it would garble the text around it.
SHORTEST_KEY = 8


class RefusedKeyError(ConfigurationError):
    """Twelve Data refuses the API key: check TWELVE_DATA_API_KEY."""


class NothingSubscribedError(ConfigurationError):
    """None of the symbols can be subscribed."""


class Feed:
    """The feed: price events are numbered and put in the intake, what happens to it is told as feed events."""

    def __init__(
        self,
        config: FeedConfig,
        *,
        api_key: Callable[[], Secret],
        symbols: Iterable[str],
        intake: EventQueue,
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`clock` gives microseconds UTC, `monotonic` seconds."""
        self.config = config
        self.session: Session
        self.received = self.lost = 0  # price events, over all sessions
        self.skipped_frames = 0
        self.connections = 0
        self.heard_at = monotonic()  # the server's last word: any event, no pong
        self.lost_at = -math.inf
        self.trouble = ""  # how the last connection ended
        self._api_key = api_key
        self._key = Secret("")  # the one that was sent last
        self._intake = intake
        self._clock = clock
        self._monotonic = monotonic
        self._reconnect = Reconnect(rng or random.Random())  # noqa: S311  jitter, no secret
        self._client = _Client(symbols)
        self._wanted = frozenset(self._client.symbols)
        self._accepted: tuple[str, ...] = ()  # on the open connection
        self._session_ids: set[int] = set()
        self._ever_connected = False
        self._ever_subscribed = False
        self._lost: tuple[PriceEvent, PriceEvent] | None = None  # first and last that found the intake full
        self._last_frame = 0  # microseconds UTC, of the open or the last connection
        self._left_at: int | None = None  # the last frame of the connection that was open when told to stop
        self._was_subscribed = False  # on the open or the last connection
        self._next_tick = self._next_alive = self._next_heartbeat = 0.0
        self._heartbeat_sent: float | None = None  # and not answered yet
        self._frame_at = self._price_at = 0.0
        self._pinged = False

    # What other threads may call.

    @property
    def connected(self) -> bool:
        """Whether a connection is open."""
        return bool(self._client.ready)

    def set_symbols(self, symbols: Iterable[str]) -> None:
        """Subscribe and unsubscribe so that exactly these are subscribed, on the connection that is open."""
        self._wanted = frozenset(self._client.normalize_symbols(symbols))

    # The feed's thread.

    def run(self, stop: threading.Event) -> None:
        """Receive until `stop` is set. Raises ConfigurationError where no further try can help."""
        self._begin_session(self._clock())
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
            self._report_lost()
            # What was connected until now is blind from its last frame on: closing takes a round trip.
            self.session.vouch("stopped", self._left_at and max(self._left_at, self.session.id))

    def _receive(self, stop: threading.Event) -> None:
        """One connection, from its handshake until `stop` is set; raises when it ends otherwise."""
        self._open()
        connection = self._client.ws
        try:
            while not stop.is_set():
                now = self._monotonic()
                if now >= self._next_tick:
                    self._tick(now)
                if (text := connection.next_text()) is not None:
                    self._on_frame(ABNF.OPCODE_TEXT, text)
                    continue
                if self._intake.above_watermark:
                    # What was read is cut faster than it is published, and both share one interpreter. The rest waits
                    # in the kernel's buffers: a pause for each READ_AHEAD slows down to some 50,000 prices a second.
                    time.sleep(0.005)
                connection.deadline = now + 0.25
                try:
                    opcode, frame = connection.recv_data_frame(control_frame=True)
                except websocket.WebSocketTimeoutException:
                    continue
                self._on_frame(opcode, cast("bytes", frame.data))  # recv gives text frames as bytes, too
            self._left_at = self._last_frame
        except (DisconnectedError, websocket.WebSocketException, OSError) as error:
            self._report_lost()
            self.session.tell("disconnected", cause=self._without_key(_cause(error)), last_frame=self._last_frame)
            raise
        finally:
            self._accepted = ()
            self._client.close(politely=stop.is_set())

    def _open(self) -> None:
        self._was_subscribed = False
        try:
            self._key = self._api_key()
        except ConfigurationError as error:
            if not self._ever_connected:
                raise
            raise DisconnectedError(str(error)) from None  # its file may be in the middle of a rotation
        self._client.symbols = set(self._wanted)
        key = quote(self._key.reveal(), safe="")
        try:
            url = f"{self.config.url}?apikey={key}"
            self._client.connect(url, self.config.handshake_timeout, self.config.proxy)
        except websocket.WebSocketBadStatusException as error:
            if error.status_code in {200, 401, 403}:  # the vendor answers a bad key with a plain page, status 200
                raise RefusedKeyError(f"{docstring(RefusedKeyError)}{self._route}") from None
            raise DisconnectedError(f"the server answered the handshake with HTTP status {error.status_code}") from None
        except OSError as error:
            if self._ever_connected:
                raise
            raise self._first_failure(error) from None
        self._client.ws.settimeout(0.25)
        self._ever_connected = True
        self.connections += 1
        now = self._monotonic()
        self._next_heartbeat = now + self.config.heartbeat_every
        self._heartbeat_sent = None
        self._frame_at = self._price_at = now
        self._pinged = False
        self._last_frame = self._clock()
        self.session.tell("connected", host=self.config.host)
        logger.info("connected to %s, asking for %d symbols", self.config.host, len(self._wanted))

    def _without_key(self, text: str) -> str:
        """Text of the server without our key: a server may echo what it was asked."""
        key = self._key.reveal()
        for form in (key, quote(key, safe="")) if len(key) >= SHORTEST_KEY else ():
            text = text.replace(form, "…")
        return text

    def _first_failure(self, error: OSError) -> TickpipeError:
        """As it is told where no connection has ever been: then it may be how it was set up."""
        if refusal := tls.refusal(error):
            return UntrustedError(f"{self.config.host}: {refusal}; SSL_CERT_FILE names a CA of your own{self._route}")
        by_tls, words = self.config.url.startswith("wss"), _cause(error)
        if tls.may_be_the_scheme(error, by_tls=by_tls):
            words += tls.hint("its address", "ws", "wss", by_tls=by_tls)
        return DisconnectedError(words)

    @property
    def _route(self) -> str:
        """For errors: the proxy, if there is one."""
        return f" (through {self.config.proxy})" if self.config.proxy else ""

    def _pause(self, stop: threading.Event, error: Exception, *, lasted: float, evicted: bool) -> None:
        delay = self._reconnect.after(lasted=lasted, evicted=evicted)
        if self._reconnect.evictions == Reconnect.EVICTIONS:
            logger.error(
                "the server has closed the connection %d times soon after subscribing: is another program using this "
                "API key? A plan has 1 connection (Basic, Grow) or 3 (Pro), and one more closes the oldest",
                Reconnect.EVICTIONS,
            )
        route = "" if isinstance(error, RefusedKeyError) else self._route
        self.trouble = f"{self._without_key(_cause(error))}{route}"
        logger.warning("%s; next try in %.1f s", self.trouble, delay)
        until = self._monotonic() + delay
        while not stop.is_set() and (now := self._monotonic()) < until:
            self._keep_session(now)
            stop.wait(min(0.25, until - now))

    def _on_frame(self, opcode: int, data: bytes) -> None:
        self._frame_at = self._monotonic()
        self._pinged = False
        if opcode == ABNF.OPCODE_TEXT:
            event = twelvedata.decode_frame(data)
            if event is not None:
                self.on_event(event)
                return
        elif opcode == ABNF.OPCODE_CLOSE:
            raise ClosedByServerError(data)
        elif opcode in {ABNF.OPCODE_PING, ABNF.OPCODE_PONG}:
            return
        self.skipped_frames += 1
        logger.warning("skipped a frame that is no JSON object: %r", bytes(data[:80]))

    def on_event(self, event: twelvedata.Event) -> None:
        """Number a price event and put it in the intake; nothing else, so that the websocket is never blocked."""
        now = self._last_frame = self._clock()
        self.heard_at = self._frame_at
        if self.session.is_over(now):
            self._roll_over(now)
        if event.get("event") != "price":
            self._on_word(event)
            return
        self._price_at = self._frame_at
        self._heartbeat_sent = None
        self.received += 1
        price = self.session.number(event, now)
        if (name := twelvedata.instrument_name(event)) not in self.session.instruments:
            self.session.instruments.add(name)
            self.session.tell("instrument", **twelvedata.instrument(event))
        if self._intake.put(price):
            if self._lost:
                self._report_lost()
        else:
            self.lost += 1
            self.lost_at = self._frame_at
            self._lost = (self._lost[0] if self._lost else price, price)

    def _on_word(self, event: twelvedata.Event) -> None:
        """What the server says that is no price."""
        self._heartbeat_sent = None
        kind = event.get("event")
        if kind == "subscribe-status":
            self._on_subscribe_status(twelvedata.subscribe_status(event))
        elif kind != "heartbeat":
            level = logging.WARNING if event.get("status") == "error" else logging.DEBUG
            logger.log(level, "it says: %s", twelvedata.plain(event))

    def _on_subscribe_status(self, status: twelvedata.SubscribeStatus) -> None:
        refused = status.refused
        if status.error and not refused and not status.accepted:
            refused = dict.fromkeys(sorted(self._wanted), status.error)
        refused = {symbol: self._without_key(reason) for symbol, reason in refused.items()}
        if refused:
            reasons = "; ".join(f"{symbol} ({reason})" for symbol, reason in sorted(refused.items()))
            logger.warning("refused by the server: %s", reasons)
            self.session.tell("refused", symbols=refused)
        if status.accepted:
            self._was_subscribed = True
            self._ever_subscribed = True
            self._accepted = tuple(sorted({*self._accepted, *status.accepted}))
            self.session.tell("subscribed", symbols=status.accepted)
            logger.info("subscribed: %s", ", ".join(status.accepted))
        elif refused and not self._ever_subscribed:
            raise NothingSubscribedError(f"none of the symbols can be subscribed: {reasons}")

    # What is due now and then.

    def _tick(self, now: float) -> None:
        self._next_tick = now + 0.25
        self._keep_session(now)
        self._sync_subscriptions()
        if now - self._frame_at > 2 * self.config.ping_after:
            raise DisconnectedError(f"nothing from the server for {now - self._frame_at:.0f} s, not even a pong")
        if now - self._frame_at > self.config.ping_after and not self._pinged:
            self._client.ws.ping()
            self._pinged = True
        if self._heartbeat_sent is not None and now - self._heartbeat_sent > self.config.heartbeat_timeout:
            raise DisconnectedError("the server answers pings, but no heartbeat: the feed is dead")
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self.config.heartbeat_every
            self._client.heartbeat()
            if self._heartbeat_sent is None:
                self._heartbeat_sent = now
        if now - self._price_at > self.config.resubscribe_after:
            logger.info("no price on any symbol for %.0f s: subscribing again", now - self._price_at)
            self._price_at = now
            self._client.subscribed_symbols = set()
            self._client.update_subscription_symbols()

    def _sync_subscriptions(self) -> None:
        if self._wanted != self._client.symbols:
            self._client.symbols = set(self._wanted)
            names = {symbol.partition(":")[0] for symbol in self._wanted}  # AAPL:NASDAQ is accepted as AAPL
            gone = tuple(symbol for symbol in self._accepted if symbol not in names)
            if gone:
                self._accepted = tuple(symbol for symbol in self._accepted if symbol not in gone)
                self.session.tell("unsubscribed", symbols=gone)
            self._client.update_subscription_symbols()

    # Sessions.

    def _begin_session(self, now: int, **more: object) -> None:
        while now in self._session_ids:  # the clock may come back to the very microsecond
            now += 1
        self._session_ids.add(now)
        self.session = Session(now, self._intake.put_always, self._clock)
        symbols = sorted(self._wanted)
        self.session.tell("started", now, feed=self.config.name, host=self.config.host, symbols=symbols, **more)

    def _keep_session(self, monotonic: float) -> None:
        if self.session.is_over(now := self._clock()):
            self._roll_over(now)
        if monotonic >= self._next_alive:
            self._next_alive = monotonic + self.config.alive_every
            self._report_lost()
            self.session.vouch("alive", connected=self._client.ready)

    def _roll_over(self, now: int) -> None:
        """A new session on the same connection: the UTC day has ended, or the clock has gone back."""
        self._report_lost()
        old = self.session
        if now < old.ends:
            logger.warning("the clock has gone back by %.1f s: a new session begins", old.ahead(now) / 1e6)
        old.vouch("stopped", now)
        self._last_frame = min(self._last_frame, now)  # a gap that begins now is not one of the clock of before
        self._begin_session(now, continues=old.id)
        if self._client.ready:  # from the same moment on: this is no gap
            self.session.tell("connected", now, host=self.config.host)
            self.session.tell("subscribed", now, symbols=self._accepted)

    def _report_lost(self) -> None:
        if self._lost:
            first, last = self._lost
            self._lost = None
            logger.error("the intake was full: %d price events were lost", last.seq - first.seq + 1)
            self._intake.put_always(overflow(first, last, "intake full"))


def _cause(error: Exception) -> str:
    if refusal := tls.refusal(error):
        return refusal
    if isinstance(error, websocket.WebSocketTimeoutException | TimeoutError):
        return "the server did not answer in time"
    return str(error) or type(error).__name__
