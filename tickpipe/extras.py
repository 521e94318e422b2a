"""Optional extras of the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import ConfigurationError


@contextmanager
def required_extra(extra: str, caller: str) -> Iterator[None]:
    """Surrounds the imports of a command or function. Raises ConfigurationError if a package of the extra is missing.

    `caller`: a command such as `tickpipe up`, or a function, for the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`{caller}` needs the extra `{extra}`: pip install 'tickpipe[{extra}]' ({error})"
        ) from error
