"""Standard output and standard error for any locale and device, even if the parent process has closed them."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from common.errors import TickpipeError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Exit status of a command whose reader has closed the pipe, as in `| head -1`: 128 + SIGPIPE.
CLOSED_PIPE = 141


class OutputError(TickpipeError):
    """Standard output cannot be written."""


def prepare() -> None:
    """Replace standard output and errors of this process. A stream that the caller has replaced stays as it is.

    Characters that the encoding lacks are escaped. If a write to standard output fails, later output is discarded: the
    write raises OutputError, or ends the command if the reader has closed the pipe. If a write to standard error fails,
    the text is discarded.
    """
    _occupy_standard_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(sys.stdout, _Output)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(sys.stderr, _Errors)


def _occupy_standard_descriptors() -> None:
    """Open closed descriptors: else a connection would get the number, and libpq would write its errors into it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def _text(stream: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    """`stream` is None if it was closed when Python started."""
    raw = kind(os.open(os.devnull, os.O_WRONLY) if stream is None else stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=kind is _Errors or raw.isatty(),
    )


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._discard_the_rest()
            if isinstance(error, BrokenPipeError):
                sys.exit(CLOSED_PIPE)
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None

    def _discard_the_rest(self) -> None:
        """At exit, Python writes the buffer again. That would print a traceback."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


class _Errors(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes
