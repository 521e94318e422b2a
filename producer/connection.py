"""One websocket connection, with time and size limits that the library does not have."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import websocket

from common import tls
from common.errors import TickpipeError, UntrustedError
from common.proxy import Proxy, websocket_options
from producer.config import host_of

logger = logging.getLogger("producer.feed")

#: Bytes to read from the socket at once.
READ_AHEAD = 65_536
#: Maximum size of a message in bytes. The vendor documents 1 MB.
MAX_MESSAGE = 4 * 1024 * 1024
#: Seconds that `Connection.receive` waits for a complete frame.
READ_TIMEOUT = 0.25

#: First byte of an unfragmented text frame; a length byte of 126 means that two bytes of length follow (RFC 6455, 5.2).
_FINAL_TEXT, _LENGTH_FOLLOWS = 0x81, 126
#: Close codes that a server may use to make room for another client: none, normal closure, policy violation,
#: unauthorized and forbidden. Codes from 4000 on have no public meaning, so they count too.
_EVICTION_CODES, _PRIVATE_CODES = frozenset({None, 1000, 1008, 3000, 3003}), range(4000, 5000)


class DisconnectedError(TickpipeError):
    """The connection ended."""


class ClosedByServerError(DisconnectedError):
    """The server closed the connection with a close frame. `code` is None if the frame has no code."""

    def __init__(self, frame: bytes) -> None:
        """`frame` is the payload of the close frame: empty, or a code of two bytes and a reason."""
        self.code = int.from_bytes(frame[:2], "big") if len(frame) >= 2 else None
        reason = frame[2:].decode(errors="replace")
        super().__init__(f"the server closed the connection (code {self.code}{': ' + reason if reason else ''})")

    @property
    def may_be_eviction(self) -> bool:
        """Whether the server may have closed the connection in favor of another client.

        No code of RFC 6455 or IANA means eviction. The codes that name a failure, a restart, an overload or a protocol
        error are ruled out (1001, 1002, 1011 to 1014, 3008 and so on).
        """
        return self.code in _EVICTION_CODES or (self.code or 0) in _PRIVATE_CODES


def cause(error: Exception) -> str:
    """Why a connection failed or ended."""
    if refusal := tls.refusal(error):
        return refusal
    if isinstance(error, websocket.WebSocketTimeoutException | TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, websocket.WebSocketAddressException):
        return f"the name of the server is unknown ({error}): is this machine online, and does its DNS work?"
    return str(error) or type(error).__name__


def first_failure(error: OSError, url: str, route: str) -> TickpipeError:
    """The error before any connection has succeeded. The configuration may be its cause. `route`: a proxy, or ""."""
    if refusal := tls.refusal(error):
        return UntrustedError(f"{host_of(url)}: {refusal}; set SSL_CERT_FILE to trust your own CA{route}")
    by_tls, message = url.startswith("wss"), cause(error)
    if tls.may_be_the_scheme(error, by_tls=by_tls):
        message += tls.hint("its address", "ws", "wss", by_tls=by_tls)
    return DisconnectedError(message)


class Connection(websocket.WebSocket):
    """A websocket that a slow or hostile server cannot block: timeouts cover a whole frame, not one read."""

    def __init__(self) -> None:
        # Decoding the JSON checks UTF-8. A second check would double the time for a frame.
        super().__init__(enable_multithread=False, skip_utf8_validation=True)
        self._deadline = math.inf
        self._buffer, self._position = b"", 0  # bytes read from the socket, and how many of them were consumed
        self._message_size = 0  # bytes of the message that is being received

    @classmethod
    def open(cls, url: str, *, timeout: float, proxy: Proxy | None, first_message: str) -> Connection:
        """Connect and send the first message. `timeout` (seconds) limits the whole handshake.

        Raises DisconnectedError for a redirect, and otherwise websocket's errors and OSError.
        """
        connection = cls()
        connection.settimeout(timeout)  # for each read
        limit = threading.Timer(timeout + 0.5, connection._interrupt)  # for all of them
        limit.start()
        try:
            # The URL holds the key. Following a redirect would give the key to another server.
            connection.connect(url, redirect_limit=0, **websocket_options(proxy))  # type: ignore[no-untyped-call]
            connection.send(first_message)
        except (OSError, websocket.WebSocketException):
            response = connection.handshake_response
            connection.disconnect(graceful=False)
            if response is not None and response.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise DisconnectedError(
                    f"the server answered the handshake with HTTP status {response.status}, a redirect; redirects are "
                    "not followed: check --url"
                ) from None
            raise
        finally:
            limit.cancel()
        connection.settimeout(READ_TIMEOUT)
        return connection

    def next_text(self) -> bytes | None:
        """The payload of the next frame, if it is an unfragmented text frame that was read completely; else None.

        After None, call `receive`. This shortcut exists because the library spends a third of the time for a price on
        cases that a price never is.
        """
        data, at = self._buffer, self._position
        incomplete = self.frame_buffer.header or self.frame_buffer.recv_buffer or self.cont_frame.cont_data
        if incomplete or len(data) - at < 4 or data[at] != _FINAL_TEXT:
            return None
        at, length = at + 2, data[at + 1]
        if length == _LENGTH_FOLLOWS:
            at, length = at + 2, int.from_bytes(data[at : at + 2], "big")
        elif length > _LENGTH_FOLLOWS:  # a length of eight bytes, or a masked frame
            return None
        if at + length > len(data):
            return None
        self._position = at + length
        return data[at : self._position]

    def receive(self) -> tuple[int, bytes] | None:
        """Opcode and payload of the next frame, or None if no frame is complete within READ_TIMEOUT."""
        self._deadline = time.monotonic() + READ_TIMEOUT
        try:
            opcode, frame = self.recv_data_frame(control_frame=True)
        except websocket.WebSocketTimeoutException:
            return None
        return opcode, cast("bytes", frame.data)  # bytes for text frames, too

    def disconnect(self, *, graceful: bool) -> None:
        """Close the connection. `graceful` sends a close frame and waits up to 1 s for the reply."""
        try:
            if graceful:
                self._deadline = time.monotonic() + 1
                self.close(timeout=1)
            self.shutdown()  # type: ignore[no-untyped-call]
        except (OSError, websocket.WebSocketException) as error:
            logger.debug("closing: %s", error)

    def recv_data_frame(self, control_frame: bool = False) -> tuple[int, Any]:
        """The library's method, which resets the size limit after each complete message."""
        received = super().recv_data_frame(control_frame)
        if self.cont_frame.cont_data is None:
            self._message_size = 0
        return received

    def _recv(self, bufsize: int) -> Any:
        """Up to `bufsize` bytes. The library asks three times for each frame; one read of the socket serves many."""
        if self._position == len(self._buffer):
            if time.monotonic() > self._deadline:  # the library keeps the part that has arrived for the next call
                raise websocket.WebSocketTimeoutException("a frame is not complete yet")
            self._buffer, self._position = super()._recv(READ_AHEAD), 0  # type: ignore[no-untyped-call]
        part = self._buffer[self._position : self._position + bufsize]
        self._position += len(part)
        self._message_size += len(part)
        if self._message_size > MAX_MESSAGE:
            raise websocket.WebSocketPayloadException(f"a message is larger than {MAX_MESSAGE:,} bytes")
        return part

    def _interrupt(self) -> None:
        """Make a blocked read or write fail. Callable from any thread."""
        if self.sock:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
