"""Finds the servers: arguments, then the environment, then a running `tickpipe up`, then the usual ports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common import settings
from common.errors import DatabaseOutageError
from common.settings import Secret
from tickpipe.local.addresses import running_servers


@dataclass(frozen=True)
class Servers:
    """The servers, and the names in Redis. `named`: whether the database was named, or found in a `tickpipe up`."""

    database_url: Secret
    redis_url: Secret
    price_stream: str
    consumer_group: str
    named: bool

    def explain(self, check: Callable[[], None]) -> None:
        """Call this check. Its DatabaseOutageError also says that no database was named, if none was."""
        try:
            check()
        except DatabaseOutageError as error:
            if self.named:
                raise
            raise DatabaseOutageError(
                f"{error}. DATABASE_URL is not set, and no `tickpipe up` runs on this machine"
            ) from None


def find_servers(
    database_url: str | None, redis_url: str | None, price_stream: str, consumer_group: str, environ: Mapping[str, str]
) -> Servers:
    """The servers of these URLs, or of the environment. Raises ConfigurationError for an invalid URL."""
    database = settings.read_database_url(environ if database_url is None else {"DATABASE_URL": database_url})
    redis = settings.read_redis_url(environ if redis_url is None else {"REDIS_URL": redis_url})
    running_redis, running_database = (None, None) if database and redis else running_servers(environ)
    found = database or running_database
    return Servers(
        found or Secret(settings.DEFAULT_DATABASE_URL),
        redis or running_redis or Secret(settings.DEFAULT_REDIS_URL),
        price_stream,
        consumer_group,
        found is not None,
    )
