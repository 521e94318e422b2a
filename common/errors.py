"""Every error tickpipe raises on purpose. The docstring is the message where none is given."""

from __future__ import annotations

from collections.abc import Mapping


class TickpipeError(Exception):
    """Something went wrong."""

    #: What the process exits with when this error ends it: 1 is worth a retry, 2 needs a person.
    exit_status = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class ConfigurationError(TickpipeError):
    """A setting is missing or wrong."""

    exit_status = 2


class UntrustedError(ConfigurationError):
    """A server cannot prove by TLS who it is."""


class DatabasePermissionError(ConfigurationError):
    """The database role lacks a right."""


class OutageError(TickpipeError):
    """Something we depend on is away; the data are fine and the same call may succeed later."""


class StreamOutageError(OutageError):
    """Redis is away, or refuses to work for now."""


class DatabaseOutageError(OutageError):
    """The database is away, or refuses to work for now."""


class BadDataError(TickpipeError):
    """A value that will never be stored, however often it is tried."""


class DecodeError(BadDataError, ValueError):
    """A stream entry that is no tick. `raw` keeps its fields as they came, for the dead letter."""

    def __init__(self, message: str, raw: Mapping[bytes, bytes]) -> None:
        super().__init__(message)
        self.raw = dict(raw)
