"""The folder of the spools: its path, its permissions, and the spools that dead producers left in it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import platformdirs
from filelock import Timeout

from common.channels import channel_key, channel_number
from common.errors import ConfigurationError, OutageError
from common.settings import Secret, absolute_folder
from common.streams.lease import feed_digest, next_epoch
from common.streams.stream import Fence, Stream
from producer.spool import Spool

logger = logging.getLogger("producer.spool")


def spool_folder(spool_dir: Path | None, redis_url: Secret, price_stream: str) -> Path:
    """The folder of the spools for this Redis and stream, in `spool_dir` or the user's state folder.

    Each destination has a folder of its own, without a secret in its name. Otherwise a producer of real prices could
    adopt simulated ones that another producer left behind.
    """
    parts = urlsplit(redis_url.reveal())
    db = parse_qs(parts.query).get("db", [""])[0]
    several = "+" in parts.scheme  # Sentinels or nodes of a cluster
    server = parts.netloc.rpartition("@")[2] if several else f"{parts.hostname or ''}:{parts.port or ''}"
    place = f"{server}{parts.path}?{db}-{price_stream}"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", place).strip("-")[:100]
    # The name is shortened. The digest keeps two destinations apart.
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:8]
    spools = spool_dir or absolute_folder(lambda: platformdirs.user_state_path("tickpipe") / "spool", "--spool-dir")
    return spools / f"{name}-{digest}"


def make_folder(folder: Path) -> None:
    """Create the spool's folder for this user only.

    Raises ConfigurationError if that fails, or if other users can write to the folder: they could inject prices.
    """
    try:
        for parent in reversed(folder.parents):
            parent.mkdir(mode=0o755, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if reason := _unsafe(folder.lstat()):
            raise ConfigurationError(f"the spool's folder {folder} {reason}, or choose another one with --spool-dir")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"the spool's folder {folder} cannot be written ({error}): choose another one with --spool-dir"
        ) from None


def _unsafe(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link: give the folder itself as --spool-dir"
    if found.st_uid != os.geteuid():
        return f"belongs to user id {found.st_uid}, but this process has user id {os.geteuid()}: run as that user"
    if found.st_mode & 0o022:
        return "is not private: other users can write to it: chmod 700 it after checking its files"
    return None


def spool_path(folder: Path, session: int, fence: Fence | None = None) -> Path:
    """The spool of the producer's run that began with this session. Its name has the fence of the run."""
    return folder / (f"{session}.{feed_digest(fence.feed)}.{fence.epoch}.spool" if fence else f"{session}.spool")


def taken_over(prices: Stream, path: Path) -> int | None:
    """When another producer became active after the run that wrote this spool, microseconds UTC; None if none did.

    `prices`: the stream that a single channel uses. Raises StreamOutageError, ConfigurationError.
    """
    parts = path.name.split(".")
    return next_epoch(prices, parts[1], int(parts[2])) if len(parts) == 4 and parts[2].isdecimal() else None


def channel_folder(folder: Path, key: str, price_stream: str) -> Path:
    """The folder of a channel's spools, in the `folder` of its price stream. `key`: the channel's stream of prices."""
    channel = channel_number(price_stream, key)
    return folder if channel is None else folder / f"channel-{channel}"


def channel_folders(folder: Path, price_stream: str) -> dict[str, Path]:
    """The folders of spools that exist, by stream of prices."""
    found = {price_stream: folder} if folder.is_dir() else {}
    for path in sorted(folder.glob("channel-*")):
        if (number := path.name.removeprefix("channel-")).isdecimal() and path.is_dir():
            found[channel_key(price_stream, int(number))] = path
    return found


def spool_files(folder: Path) -> list[Path]:
    """The spools in the folder, without those of its subfolders, oldest first."""
    return sorted(folder.glob("*.spool"))


def all_spool_files(folder: Path) -> list[Path]:
    """The spools of all channels of a price stream."""
    return [*spool_files(folder), *sorted(folder.glob("channel-*/*.spool"))]


def adopt_orphans(folder: Path) -> Iterator[Spool]:
    """The spools that dead producers left in the folder, one at a time, each locked."""
    for path in spool_files(folder):
        try:
            yield Spool(path, max_bytes=0)
        except (Timeout, FileNotFoundError):
            continue  # its producer is alive, or has just finished
        except OSError as error:
            logger.error("spool not adopted: %s (%s). Its prices stay in the file", path, error)
        except OutageError as error:
            logger.error("spool not adopted: %s. Its prices stay in the file", error)
