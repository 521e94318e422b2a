"""The errors of tickpipe. The first line of a class's docstring is its default message."""

from __future__ import annotations

from collections.abc import Mapping

from common.docstrings import docstring


class TickpipeError(Exception):
    """An error in tickpipe."""

    #: Exit status of a process that this error ends: 1 if a retry can help, 2 if a person must act.
    exit_status = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or docstring(type(self)).splitlines()[0])


class ConfigurationError(TickpipeError):
    """A setting is missing or wrong."""

    exit_status = 2


class UntrustedError(ConfigurationError):
    """TLS cannot verify a server's identity."""


class DatabasePermissionError(ConfigurationError):
    """The database role lacks a right."""


class OutageError(TickpipeError):
    """A server is unavailable. The data is valid, and the same call may succeed later."""


class StreamOutageError(OutageError):
    """Redis is unavailable, or refuses commands for now."""


class UnconfirmedError(StreamOutageError):
    """Redis has appended entries, but too few replicas confirmed in time that they have them on disk."""


class BehindError(StreamOutageError):
    """This Redis lacks entries that were appended before, so later ones must wait until they are appended again."""


class FencedError(TickpipeError):
    """Another producer of this feed has become active. `since`: when, in microseconds UTC by the clock of Redis."""

    def __init__(self, since: int) -> None:
        super().__init__("another producer of this feed name has become active: this one may not append any more")
        self.since = since


class DatabaseOutageError(OutageError):
    """The database is unavailable, or refuses statements for now."""


class BadDataError(TickpipeError):
    """A value that can never be stored."""


class DecodeError(BadDataError, ValueError):
    """A malformed stream entry. `raw` has its original fields, for the dead letter."""

    def __init__(self, message: str, raw: Mapping[bytes, bytes]) -> None:
        super().__init__(message)
        self.raw = dict(raw)
