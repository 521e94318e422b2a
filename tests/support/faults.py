"""A simulator that fails on demand as websocket servers and networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Coroutine, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Any, Literal

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tickpipe.simulator.connection import Connection
from tickpipe.simulator.exchange import ExchangeSimulator
from tickpipe.simulator.local_server import LocalServer
from tickpipe.simulator.random_walk import Event
from tickpipe.simulator.server import Simulator

#: Seconds until a fault is active.
CALL_TIMEOUT = 5.0
#: Seconds within which a client must answer a close frame.
CLOSE_TIMEOUT = 2.0


class Faults(LocalServer):
    """Faults of any server. They may be called from any thread, also from within the journal.

    When a call has returned, the fault is in force (from within the journal: as soon as the journal has returned).
    """

    _most_open = 0
    _hanging = _muted = _quiet = False
    _refusal: int | None = None
    _close_after: float | None = None
    _close_code = 1000
    _max_client_events: int | None = None
    _max_connections: int | None = None

    @cached_property
    def _half_open(self) -> set[int]:
        return set()

    @cached_property
    def _heard(self) -> dict[int, int]:
        """Messages from the client, by connection number."""
        return {}

    @cached_property
    def _answers(self) -> deque[tuple[int, object]]:
        """The answers to the next REST calls."""
        return deque()

    @cached_property
    def calls(self) -> list[Mapping[str, str]]:
        """The parameters of each REST call, in order."""
        return []

    # Observations.

    @property
    def open_connections(self) -> int:
        """Number of open connections, without half-open ones, whose clients may have left."""
        self._catch_up()
        return len(self._alive())

    @property
    def most_open(self) -> int:
        """The maximum of simultaneous connections since the start."""
        self._catch_up()
        return self._most_open

    @property
    def connections(self) -> int:
        """The number of successful handshakes since the start."""
        self._catch_up()
        return self._connections

    # Faults that happen once, to every open connection.

    def close_all(self, code: int = 1000, reason: str = "") -> None:
        """Close with a close frame. Clients that do not answer are disconnected later."""

        async def close() -> None:
            connections = self._alive()
            self._spawn(self._close(connections, code, reason, CLOSE_TIMEOUT))
            while any(connection.is_open for connection in connections):
                await asyncio.sleep(0)

        self._run(close())

    def reset_all(self) -> None:
        """TCP reset: the client's next read fails."""

        async def reset() -> None:
            for connection in tuple(self._open.values()):
                transport = connection.socket.transport
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                transport.abort()

        self._run(reset())

    def half_open_all(self) -> None:
        """Stop reading, sending and closing on these sockets. New connections work."""

        async def freeze() -> None:
            for connection in self._open.values():
                self._half_open.add(connection.number)
                connection.socket.transport.pause_reading()

        self._run(freeze())

    def send_raw(self, data: str | bytes) -> None:
        """Send a text or binary frame without waiting for slow clients."""

        async def send(to: ServerConnection) -> None:
            with contextlib.suppress(ConnectionClosed):
                await to.send(data)

        async def send_to_all() -> None:
            for connection in self._alive():
                self._spawn(send(connection.socket))
            await asyncio.sleep(0)  # all have started

        self._run(send_to_all())

    # Faults that last until they are switched off.

    def hang_handshakes(self, on: bool) -> None:
        """Accept TCP and never answer the HTTP upgrade. Hanging handshakes keep hanging."""
        self._set(_hanging=on)

    def mute(self, on: bool) -> None:
        """Answer pings only, without prices and replies. A replay pauses."""
        self._set(_muted=on)

    def quiet(self, on: bool) -> None:
        """Send replies without prices. A replay pauses."""
        self._set(_quiet=on)

    def refuse_key(self, on: bool, status: Literal[200, 401] = 200) -> None:
        """Refuse every key at the handshake."""
        self._set(_refusal=status if on else None)

    def close_after_subscribe(self, seconds: float | None, code: int = 1000) -> None:
        """Close this many seconds after each subscription, as if another client used the same key."""
        self._set(_close_after=seconds, _close_code=code)

    def max_client_events(self, n: int | None) -> None:
        """Close a connection (1008) at the n-th client message without a reply."""
        self._set(_max_client_events=n)

    def max_connections(self, n: int | None) -> None:
        """Close the oldest connection (1000) if there are more than this."""
        self._set(_max_connections=n)

    def answer_calls(self, *answers: tuple[int, object]) -> None:
        """Answer the next REST calls with these HTTP statuses and JSON bodies, one for each call."""
        self._set(_answers=deque(answers))

    # Hooks of the simulator. All run in its thread.

    async def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        if self._hanging:
            await socket.wait_closed()
        if self._refusal is not None:
            return self._refuse(socket, HTTPStatus(self._refusal))
        return await super()._admit(socket, request)

    def _opened(self, connection: Connection) -> None:
        alive = self._alive()
        self._most_open = max(self._most_open, len(alive))
        if self._max_connections is not None and len(alive) > self._max_connections:
            self._spawn(self._close(alive[:1], 1000, "too many connections", CLOSE_TIMEOUT))
        super()._opened(connection)

    async def _received(self, connection: Connection, message: str | bytes) -> None:
        if connection.number in self._half_open:
            return  # read before the connection went half-open
        heard = self._heard[connection.number] = self._heard.get(connection.number, 0) + 1
        if self._max_client_events is not None and heard >= self._max_client_events:
            await self._close([connection], 1008, "too many events", CLOSE_TIMEOUT)
        else:
            await super()._received(connection, message)

    def _subscribed(self, connection: Connection) -> None:
        if self._close_after is not None:
            self._spawn(self._close_later(connection, self._close_after))
        super()._subscribed(connection)

    def _permits(self, connection: Connection, what: Literal["price", "reply", "close"]) -> bool:
        if connection.number in self._half_open:
            return False
        silenced = self._muted or (self._quiet and what == "price")
        return (what == "close" or not silenced) and super()._permits(connection, what)

    async def _close_later(self, connection: Connection, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._close([connection], self._close_code, "", CLOSE_TIMEOUT)

    # Helpers.

    def _alive(self) -> list[Connection]:
        """Oldest first."""
        connections = tuple(self._open.values())
        return [each for each in connections if each.is_open and each.number not in self._half_open]

    def _catch_up(self) -> None:
        """Wait for the simulator's thread: a client may see its connection slightly earlier."""
        if self._thread and self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._run(asyncio.sleep(0))

    def _set(self, **attributes: object) -> None:
        async def apply() -> None:
            for name, value in attributes.items():
                setattr(self, name, value)

        self._run(apply())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run an action in the simulator's thread and wait for the result."""
        if self._thread is None or not self._thread.is_alive():
            work.close()
            raise RuntimeError("the simulator does not run")
        if threading.current_thread() is self._thread:
            self._spawn(work)
        else:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT)


class FaultySimulator(Faults, Simulator):
    """A faulty simulator of Twelve Data."""

    def _answer(self, params: Mapping[str, str], key: str) -> tuple[int, Event]:
        self.calls.append(params)
        answer = super()._answer(params, key)
        return self._answers.popleft() if self._answers else answer  # type: ignore[return-value]  # odd ones, too


class FaultyExchange(Faults, ExchangeSimulator):
    """A faulty simulator of an exchange."""

    def refuse_handshakes(self, status: int | None) -> None:
        """Refuse every handshake and request with this HTTP status; None: no longer."""
        self._set(_refusal=status)

    def _answer(self, path: str, params: Mapping[str, str]) -> tuple[int, object]:
        self.calls.append({"path": path, **params})
        answer = super()._answer(path, params)
        return self._answers.popleft() if self._answers else answer
