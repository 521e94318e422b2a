"""Standard output and errors that fit any locale, any device and a parent that has closed them."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from common.errors import TickpipeError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: The exit status of a command whose reader has gone, as `| head -1` does: 128 + SIGPIPE, as of any Unix command.
CLOSED_PIPE = 141


class OutputError(TickpipeError):
    """Standard output cannot be written."""


def prepare() -> None:
    """Replace standard output and errors of this process. A stream that the caller has replaced stays as it is.

    A character that the encoding lacks is written escaped. A write to standard output that fails raises OutputError
    once, or ends the command if the reader of the pipe has gone; what follows is discarded. A write to standard error
    that fails is discarded: no place is left to report it.
    """
    _occupy_standard_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(sys.stdout, _Output)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(sys.stderr, _Errors)


def _occupy_standard_descriptors() -> None:
    """Open those that are closed: otherwise a connection gets the number, and libpq writes its errors into it."""
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
        """Python writes what is buffered again at exit, and would then print a traceback."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


class _Errors(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes
