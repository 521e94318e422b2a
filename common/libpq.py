"""The environment variables of libpq, PostgreSQL's client library (PGHOSTADDR, PGSERVICE, PGOPTIONS and others).

libpq reads them inside each process that connects, and a URL cannot override all of them. For a database of the user
they keep their documented meaning. The embedded PostgreSQL has one right way to connect, so they are removed.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

from common.settings import Secret

#: The URL of the embedded PostgreSQL has this application name, by which every command recognizes it.
EMBEDDED = "tickpipe-embedded"


def is_embedded(url: Secret) -> bool:
    """Return whether this is the URL of an embedded PostgreSQL."""
    return re.search(rf"[?&]application_name={EMBEDDED}(&|$)", url.reveal()) is not None


def remove_variables(environ: MutableMapping[str, str]) -> None:
    """Remove each variable that libpq could read, of this version and of later ones."""
    for name in [name for name in environ if name.startswith("PG")]:
        del environ[name]
