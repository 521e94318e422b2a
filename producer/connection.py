"""One websocket connection to the vendor."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import websocket
from twelvedata.context import Context
from twelvedata.websocket import TDWebSocket

from common.errors import TickpipeError
from common.proxy import Proxy, websocket_options

logger = logging.getLogger("producer.feed")

_FINAL_TEXT, _LENGTH_FOLLOWS = 0x81, 126
#: Bytes read from the connection at once.
READ_AHEAD = 65_536
#: Most bytes of one message. The vendor documents 1 MB.
MAX_MESSAGE = 4 * 1024 * 1024

#: Close codes: none, normal closure, policy violation, unauthorized, forbidden; and those without a public meaning.
_MAY_BE_EVICTION, _PRIVATE_CODES = frozenset({None, 1000, 1008, 3000, 3003}), range(4000, 5000)


class DisconnectedError(TickpipeError):
    """The connection ended; the message says how."""


class ClosedByServerError(DisconnectedError):
    """The server closed the connection with a close frame. `code` is None if the frame has none."""

    def __init__(self, frame: bytes) -> None:
        """`frame` is the payload of the close frame: a code of two bytes, then a reason; or empty."""
        self.code = int.from_bytes(frame[:2], "big") if len(frame) >= 2 else None
        reason = frame[2:].decode(errors="replace")
        super().__init__(f"the server closed the connection (code {self.code}{': ' + reason if reason else ''})")

    @property
    def may_be_eviction(self) -> bool:
        """Whether the server may have closed it for another client's sake; no code of RFC 6455 or IANA says so.

        A normal closure, none given, a policy, a refusal and a vendor's own code may. The other codes name a failure,
        a restart or overload of the server, or an error of the protocol (1001, 1002, 1011 to 1014, 3008 and so on).
        """
        return self.code in _MAY_BE_EVICTION or (self.code or 0) in _PRIVATE_CODES


class _Socket(websocket.WebSocket):
    """A websocket on which a peer that trickles cannot hold us: its timeouts are for the whole, not for each byte."""

    deadline = math.inf
    _read, _taken = b"", 0  # what was read from the connection, and how much of it was taken
    _unfinished = 0  # bytes of the message that is being read

    def _recv(self, bufsize: int) -> Any:
        """Up to so many bytes. A frame is asked for in three parts: one look at the connection brings many frames."""
        if self._taken == len(self._read):
            if time.monotonic() > self.deadline:  # what has come of the frame is kept for the next call
                raise websocket.WebSocketTimeoutException("a frame is not complete yet")
            self._read, self._taken = super()._recv(READ_AHEAD), 0  # type: ignore[no-untyped-call]
        part = self._read[self._taken : self._taken + bufsize]
        self._taken += len(part)
        self._unfinished += len(part)
        if self._unfinished > MAX_MESSAGE:
            raise websocket.WebSocketPayloadException(f"a message is larger than {MAX_MESSAGE:,} bytes")
        return part

    def recv_data_frame(self, control_frame: bool = False) -> tuple[int, Any]:
        """The library's, with a bound for the message that the frame belongs to."""
        received = super().recv_data_frame(control_frame)
        if self.cont_frame.cont_data is None:
            self._unfinished = 0
        return received

    def next_text(self) -> bytes | None:
        """The next frame's payload, where it is an ordinary text frame, all of it read; None: ask the library for it.

        The library takes a third of a price's time for the cases that a price never is (RFC 6455, section 5.2).
        """
        data, at, length = self._read, self._taken, 0
        pieces = self.frame_buffer.header or self.frame_buffer.recv_buffer or self.cont_frame.cont_data
        if pieces or len(data) - at < 4 or data[at] != _FINAL_TEXT:
            return None
        at, length = at + 2, data[at + 1]
        if length == _LENGTH_FOLLOWS:
            at, length = at + 2, int.from_bytes(data[at : at + 2], "big")
        elif length > _LENGTH_FOLLOWS:  # longer still, or masked
            return None
        if at + length > len(data):
            return None
        self._taken = at + length
        return data[at : self._taken]

    def cut(self) -> None:
        """End whatever waits on the connection, in any thread."""
        if self.sock:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


class _Client(TDWebSocket):  # type: ignore[misc]  # the wrapper has no types
    """The wrapper's client on one plain connection at a time: no receiver thread, no self-healing."""

    def __init__(self, symbols: Iterable[str]) -> None:
        context = Context()  # a TDClient would make a blocking REST call here, with the key in its errors
        context.apikey = ""
        context.defaults = {"symbols": sorted(symbols), "logger": logging.getLogger("producer.wrapper")}
        super().__init__(context)

    ws: Any  # _Socket while connected, else None

    def connect(self, url: str, timeout: float, proxy: Proxy | None) -> None:
        """Open a connection and subscribe. Raises websocket's errors and OSError."""
        self.subscribed_symbols: set[str] = set()
        # Decoding the JSON checks UTF-8; twice is half the time of a frame.
        self.ws = _Socket(enable_multithread=False, skip_utf8_validation=True)
        self.ws.settimeout(timeout)
        limit = threading.Timer(timeout + 0.5, self.ws.cut)  # the whole; `timeout` is for each read
        limit.start()
        try:
            # The URL holds the key: no other server gets it.
            self.ws.connect(url, redirect_limit=0, **websocket_options(proxy))
            self.on_connect()
        except (OSError, websocket.WebSocketException):
            answer = self.ws.handshake_response
            self.close(politely=False)  # never two at once
            if answer is not None and answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise DisconnectedError(
                    f"the server answered the handshake with HTTP status {answer.status}, a redirect; redirects are "
                    "not followed: check --url"
                ) from None
            raise
        finally:
            limit.cancel()

    def close(self, *, politely: bool) -> None:
        """Close the connection, if any: with a close frame and a short wait for its answer, or at once."""
        self.ready = False
        connection: _Socket | None = self.ws
        self.ws = None
        if connection is None:
            return
        try:
            if politely:
                connection.deadline = time.monotonic() + 1
                connection.close(timeout=1)
            connection.shutdown()  # type: ignore[no-untyped-call]
        except (OSError, websocket.WebSocketException) as error:
            logger.debug("closing: %s", error)
