"""Settings: options that the command lines share, their defaults, and variables with secrets.

A setting without a secret is an option with an environment variable; Typer reads both. A setting that can be secret has
variables only: `NAME`, or `NAME_FILE` with the path of a file (Docker and Kubernetes secrets).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from common import urls
from common.errors import ConfigurationError
from common.plain_text import read_text, refuse_invisible, shown, unquoted

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
DEFAULT_DATABASE_URL = "postgresql://localhost:5432/tickpipe"

# Defaults of the options below, in the same order; UNHEALTHY_AFTER and CLAIM_IDLE in seconds.
PRICE_STREAM = "prices"
CONSUMER_GROUP = "timescale"
MAX_BATCH_SIZE = 1000
CLAIM_IDLE = 30.0
STREAM_KEEP = "10m"
STREAM_KEEP_BYTES = 256 * 1024 * 1024
METRICS_HOST = "127.0.0.1"
UNHEALTHY_AFTER = 60.0
LOG_LEVEL = "INFO"

FeedOption = Annotated[
    Literal["twelvedata", "coinbase", "kraken", "binance"],
    typer.Option("--feed", envvar="FEED", help="Where prices come from. Only twelvedata needs an API key."),
]
PriceStream = Annotated[
    str,
    typer.Option(
        "--price-stream", envvar="PRICE_STREAM", help="Redis stream of the prices. Feed events are in NAME:feed."
    ),
]
ConsumerGroup = Annotated[
    str, typer.Option("--consumer-group", envvar="CONSUMER_GROUP", help="Consumer group on the stream.")
]
MaxBatchSize = Annotated[
    int,
    typer.Option(
        "--max-batch-size", envvar="MAX_BATCH_SIZE", min=1, max=100_000, help="Entries in one batch, at most."
    ),
]
SpoolDir = Annotated[
    Path | None,
    typer.Option(
        "--spool-dir",
        envvar="SPOOL_DIR",
        help="Folder of the spool, which keeps prices while Redis is unavailable.",
        show_default="the user's state folder",
    ),
]
MetricsPort = Annotated[
    int, typer.Option(envvar="METRICS_PORT", min=0, max=65_535, help="Port of /metrics and /healthz; 0 disables them.")
]
MetricsHost = Annotated[
    str, typer.Option(envvar="METRICS_HOST", help="Address to listen on. Neither page has authentication.")
]
AllowedHosts = Annotated[
    str,
    typer.Option(
        "--allowed-hosts",
        envvar="ALLOWED_HOSTS",
        help="Host names, separated by commas, that HTTP requests may use besides IP addresses and local names. A "
        "reverse proxy needs it.",
    ),
]
UnhealthyAfter = Annotated[
    float, typer.Option(envvar="UNHEALTHY_AFTER", min=1, help="Seconds without progress after which /healthz is 503.")
]
LogLevel = Annotated[str, typer.Option("--log-level", envvar="LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")]


def absolute_folder(find: Callable[[], Path], option: str) -> Path:
    """The absolute path of the folder that `find` gives, with `~` and links resolved.

    Raises ConfigurationError without a HOME, or if the working folder has been deleted.
    """
    try:
        return find().expanduser().resolve()
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ConfigurationError(
            f"{option} has no absolute path: {shown(reason)}. Set HOME, or give an absolute path"
        ) from None


def read_hosts(text: str) -> list[str]:
    """The names in ALLOWED_HOSTS. Raises ConfigurationError if one is not a plain host name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ConfigurationError(
                f"--allowed-hosts {name!r} is not a host name: write it without scheme, port and path, "
                "as ticks.example.com"
            )
    return names


class Secret:
    """A text that only `reveal()` returns: no log, traceback or repr has it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


def read_secret(
    environ: Mapping[str, str], name: str, refuse: Callable[[str, str], None] = lambda _text, _title: None
) -> Secret | None:
    """The secret in the variable `name`, or in the file that `name`_FILE names; None if neither is set.

    Blanks and one pair of quotes around it are removed. Raises ConfigurationError if both variables are set, if the
    file cannot be read, and if the secret holds a character that no screen shows. `refuse` raises one, beginning with
    its second argument, for a text that cannot be this secret.
    """
    value, path = environ.get(name, ""), environ.get(f"{name}_FILE", "")
    if not value and not path:
        return None
    if value and path:
        raise ConfigurationError(f"{name} and {name}_FILE are both set: unset one of them")
    title = name
    if path:
        title = f"{name}_FILE names {_shown(path)}, which"
        value = read_text(Path(path), title)
    text = unquoted(value)
    if not text:
        raise ConfigurationError(f"{title} is empty" if path else f"{name} is set to blanks: set a value or unset it")
    refuse_invisible(text, title)
    refuse(text, title)
    return Secret(text)


def _shown(path: str) -> str:
    """The path, unless it looks like the secret itself, written into the wrong variable."""
    secret = "://" in path or "password" in path or re.fullmatch(r"[^/.]{16,}", path)
    return "no file, but perhaps the secret itself" if secret else shown(path)


def read_redis_url(environ: Mapping[str, str]) -> Secret | None:
    """REDIS_URL; None if it is not set. Raises ConfigurationError for an invalid URL."""
    return read_secret(environ, "REDIS_URL", urls.refuse_redis)


def read_database_url(environ: Mapping[str, str]) -> Secret | None:
    """DATABASE_URL; None if it is not set. Raises ConfigurationError for an invalid URL."""
    return read_secret(environ, "DATABASE_URL", urls.refuse_database)


def read_database_urls(environ: Mapping[str, str]) -> list[Secret]:
    """The URLs in DATABASE_URLS, separated by blanks; none if it is not set. Raises ConfigurationError."""

    def refuse(text: str, title: str) -> None:
        for url in text.split():
            if "://" not in url:  # blanks separate the parts of libpq's other form, too
                raise ConfigurationError(f"{title} needs URLs that are separated by blanks: write postgresql://…")
            urls.refuse_database(url, title)

    found = read_secret(environ, "DATABASE_URLS", refuse)
    return [Secret(url) for url in found.reveal().split()] if found else []


def read_import_database_url(environ: Mapping[str, str]) -> Secret | None:
    """IMPORT_DATABASE_URL; None if it is not set. Raises ConfigurationError for an invalid URL."""
    return read_secret(environ, "IMPORT_DATABASE_URL", urls.refuse_database)


def redis_url(environ: Mapping[str, str]) -> Secret:
    """REDIS_URL, or its default."""
    return read_redis_url(environ) or Secret(DEFAULT_REDIS_URL)


def database_url(environ: Mapping[str, str]) -> Secret:
    """DATABASE_URL, or its default."""
    return read_database_url(environ) or Secret(DEFAULT_DATABASE_URL)


def read_api_key(environ: Mapping[str, str]) -> Secret | None:
    """TWELVE_DATA_API_KEY; None if it is not set. Raises ConfigurationError for an invalid key."""
    return read_secret(environ, "TWELVE_DATA_API_KEY", _refuse_key)


def _refuse_key(text: str, title: str) -> None:
    if other := re.search(r"[^!-~]|['\"]", text):
        raise ConfigurationError(
            f"{title} holds the character {other[0]!a} at position {other.start() + 1}: "
            "a key has ASCII letters, digits and marks only"
        )


def api_key(environ: Mapping[str, str]) -> Callable[[], Secret]:
    """A function that reads TWELVE_DATA_API_KEY. Call it at every connect, since the key's file may have been replaced.

    Both raise ConfigurationError if the key is missing.
    """

    def read() -> Secret:
        key = read_api_key(environ)
        if key is None:
            raise ConfigurationError(
                "no API key: set TWELVE_DATA_API_KEY (or TWELVE_DATA_API_KEY_FILE); "
                "--feed coinbase needs none, and without a key `tickpipe up` shows simulated prices"
            )
        return key

    read()
    return read
