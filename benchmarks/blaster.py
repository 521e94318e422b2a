"""A fast websocket server that sends prepared price frames: `python -m benchmarks.blaster FRAMES_FILE`.

The path of the URL is `/COUNT/RATE`: the number of frames and the frames per second. Rate 0 sends as fast as the client
reads. A Python simulator generates about 20,000 events per second. This server is faster, because it sends prepared
frames in large chunks.

The server prints its port, then one line of JSON per connection with two times in seconds since 1970. `began` is the
time before the first frame. `ended` is the time of the pong to a ping behind the last frame. By then, the client has
passed all frames to its callback.
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

#: Bytes per send: several hundred frames.
CHUNK = 65_536
#: Bytes in the kernel's send buffer. The limit keeps a pong from waiting behind seconds of prices.
SEND_BUFFER = 262_144
#: Shortest time between two sends at a limited rate, seconds.
SLICE = 0.001
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_SUBSCRIBED = {
    "event": "subscribe-status",
    "status": "ok",
    "success": [{"symbol": "BTC/USD"}, {"symbol": "AAPL"}],
    "fails": None,
}


def split(data: bytes) -> Iterator[bytes]:
    """Split concatenated frames."""
    at = 0
    while at < len(data):
        size = data[at + 1]
        head = 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        yield data[at : at + head + size]
        at += head + size


def chunks(frames: list[bytes], size: int) -> Iterator[bytes]:
    """Join whole frames to chunks of at least `size` bytes. The last chunk may be smaller."""
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
    """The Sec-WebSocket-Accept value for a client's key."""
    return base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())


class Connection:
    """One client. One thread reads its messages, another sends prices. A lock keeps frames whole."""

    def __init__(self, client: socket.socket, frames: list[bytes]) -> None:
        self._socket = client
        self._frames = frames
        self._input = client.makefile("rb")
        self._lock = threading.Lock()
        self._ponged = threading.Event()
        self._began = 0.0

    def serve(self) -> None:
        """Serve the client from the handshake until it disconnects."""
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
            pass  # clients may disconnect in any way
        self._socket.close()

    def _handshake(self) -> tuple[int, float]:
        request = b"".join(iter(self._input.readline, b"\r\n"))
        path, key = re.match(rb"GET /(\d+)/(\d+)", request), re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
        if not path or not key:
            raise ValueError(f"not a websocket handshake: {request!r}")
        self._send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(key[1]) + b"\r\n\r\n"
        )
        return int(path[1]), float(path[2])

    def _receive(self) -> tuple[int, bytes] | None:
        """Opcode and payload of the client's next masked frame; None at the end."""
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
    """Serve clients one after the other, without end."""
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
