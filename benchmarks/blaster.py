"""A websocket server that sends price frames as fast as the client reads them, or at a pace: `FRAMES_FILE`.

The client's path says what it gets: `/COUNT/RATE`, rate 0 for as fast as it can. A simulator in Python makes some
20,000 events a second; here the frames are made beforehand, and whole chunks of them are sent. Prints its port, then
a line of JSON for each connection: when the first frame was sent, and when the pong came that answers a ping behind
the last one (seconds since 1970). By then the client has handed all frames to its callback, whoever it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.ticks import frame

#: Bytes sent at once: some hundred frames.
CHUNK = 65_536
#: Bytes that the kernel may hold for the client, so that a pong never waits behind seconds of prices.
SEND_BUFFER = 262_144
#: Seconds between two sends where a pace is asked for.
SLICE = 0.001
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_SUBSCRIBED = {
    "event": "subscribe-status",
    "status": "ok",
    "success": [{"symbol": "BTC/USD"}, {"symbol": "AAPL"}],
    "fails": None,
}


def split(data: bytes) -> Iterator[bytes]:
    """Frames, one by one."""
    at = 0
    while at < len(data):
        size = data[at + 1]
        head = 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        yield data[at : at + head + size]
        at += head + size


def chunks(frames: list[bytes], size: int) -> Iterator[bytes]:
    """Frames joined, each chunk of at least `size` bytes but the last; a frame is never cut."""
    chunk: list[bytes] = []
    length = 0
    for each in frames:
        chunk.append(each)
        length += len(each)
        if length >= size:
            yield b"".join(chunk)
            chunk, length = [], 0
    if chunk:
        yield b"".join(chunk)


def accept_key(key: bytes) -> bytes:
    """What proves to the client that we speak its protocol."""
    return base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())


class Connection:
    """One client. A thread reads what it says, another sends prices; a frame is never torn apart."""

    def __init__(self, client: socket.socket, frames: list[bytes]) -> None:
        self._socket = client
        self._frames = frames
        self._input = client.makefile("rb")
        self._lock = threading.Lock()
        self._ponged = threading.Event()
        self._began = 0.0

    def serve(self) -> None:
        """From the handshake until the client leaves."""
        count, pace = self._handshake()
        sender: threading.Thread | None = None
        try:
            while (message := self._receive()) is not None:
                opcode, payload = message
                if opcode == 9:
                    self._send(frame(payload, 10))
                elif opcode == 10 and payload == b"end":
                    self._ponged.set()
                elif opcode == 1 and json.loads(payload).get("action") == "subscribe" and sender is None:
                    self._send(frame(json.dumps(_SUBSCRIBED).encode()))
                    sender = threading.Thread(target=self._blast, args=(count, pace), daemon=True)
                    sender.start()
                elif opcode == 1:
                    self._send(frame(b'{"event": "heartbeat", "status": "ok"}'))
                elif opcode == 8:
                    self._send(frame(payload, 8))
        except OSError:
            pass  # how a client leaves is its own affair
        self._socket.close()

    def _handshake(self) -> tuple[int, float]:
        request = b"".join(iter(self._input.readline, b"\r\n"))
        path, key = re.match(rb"GET /(\d+)/(\d+)", request), re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
        if not path or not key:
            raise ValueError(f"no websocket handshake: {request!r}")
        self._send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(key[1]) + b"\r\n\r\n"
        )
        return int(path[1]), float(path[2])

    def _receive(self) -> tuple[int, bytes] | None:
        """Opcode and payload of the client's next frame, always masked; None at the end."""
        head = self._input.read(2)
        if len(head) < 2:
            return None
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(self._input.read(2), "big")
        mask = self._input.read(4)
        payload = self._input.read(size)
        return head[0] & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._socket.sendall(data)

    def _blast(self, count: int, pace: float) -> None:
        frames = self._frames[:count]
        try:
            began = time.time()
            if pace:
                self._pace(frames, pace)
            else:
                for chunk in chunks(frames, CHUNK):
                    self._send(chunk)
            self._send(frame(b"end", 9))
            self._ponged.wait()
        except OSError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return
        print(json.dumps({"began": began, "ended": time.time()}), flush=True)

    def _pace(self, frames: list[bytes], pace: float) -> None:
        began = time.monotonic()
        sent = 0
        while sent < len(frames):
            due = int((time.monotonic() - began) * pace) + 1
            self._send(b"".join(frames[sent:due]))
            sent = due
            time.sleep(max(SLICE, began + sent / pace - time.monotonic()))


def main() -> None:
    """Serve one client after the other, for ever."""
    frames = list(split(Path(sys.argv[1]).read_bytes()))
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Connection(client, frames).serve()


if __name__ == "__main__":
    main()
