"""Reads prices in Python: `db = tickpipe.connect()`. Needs the extra `client`.

`servers.py` finds the servers, `database.py` has the questions, `queries.py` their SQL and types. `reader.py` reads
rows as Arrow record batches, and `result.py` converts them. `live.py` follows new ticks for `subscription.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from common import clock, settings
from tickpipe.extras import required_extra

if TYPE_CHECKING:
    from tickpipe.client.database import Database


def connect(
    database_url: str | None = None,
    redis_url: str | None = None,
    *,
    price_stream: str | None = None,
    consumer_group: str | None = None,
    archive: str | None = None,
    environ: Mapping[str, str] = os.environ,
    now: Callable[[], datetime] = clock.utc,
) -> Database:
    """Connect to the database of a tickpipe, and return the object with all questions about its prices.

    `database_url` and `redis_url`: by default the variables DATABASE_URL and REDIS_URL (or …_FILE), then the servers of
    a `tickpipe up` on this machine, then the usual ports of this machine. `price_stream` and
    `consumer_group`, of the consumers that store into this database: by default PRICE_STREAM and CONSUMER_GROUP.
    `archive`: the folder or URL of `tickpipe retention --archive`, for ticks that are no longer in the database. `now`:
    the clock for ages such as "1d".

    Raises ConfigurationError for an invalid URL, a refused login or if the extra `client` is not installed, and
    OutageError if the database does not answer. Redis is not used before `subscribe`.
    """
    with required_extra("client", "tickpipe.connect()"):
        from tickpipe.client.database import Database
        from tickpipe.client.reader import Reader
        from tickpipe.client.servers import find_servers
    stream = price_stream or environ.get("PRICE_STREAM") or settings.PRICE_STREAM
    group = consumer_group or environ.get("CONSUMER_GROUP") or settings.CONSUMER_GROUP
    servers = find_servers(database_url, redis_url, stream, group, environ)
    reader = Reader(servers.database_url)
    servers.explain(reader.check)
    files = None
    if archive is not None:
        from tickpipe.client.archive import Archive
        from tickpipe.files.storage import Storage

        files = Archive(Storage(archive))
    return Database(reader, servers, now, files)
