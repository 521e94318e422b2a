"""Optional extras of the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import ConfigurationError


@contextmanager
def required_extra(extra: str, command: str) -> Iterator[None]:
    """Surrounds the imports of a command. Raises ConfigurationError if a package of the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`tickpipe {command}` needs the extra `{extra}`: pip install 'tickpipe[{extra}]' ({error})"
        ) from error
