"""Files in a folder or in S3-compatible storage. A file has its name only when it is complete."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import fs

from common.errors import ConfigurationError, OutageError, TickpipeError

#: Bytes that an upload reads at once.
CHUNK = 8 << 20


class BusyError(TickpipeError):
    """Another command writes to this folder."""


class Storage:
    """A folder, by its path or by a URL such as `s3://bucket/folder?endpoint_override=…`. Paths are relative to it."""

    def __init__(self, place: str, files: fs.FileSystem | None = None) -> None:
        """`files`: the file system of `place`, if it is known. Raises ConfigurationError for an invalid URL, and for a
        password in it.
        """
        self.place = place
        self._local = files is None and not re.match(r"[a-z][a-z0-9+.-]+://", place)
        with self.errors():
            if files is not None:
                self._files, root = files, place
            elif self._local:
                self._files, root = fs.LocalFileSystem(), str(Path(place).expanduser().absolute())
            else:
                self._refuse_password(place)
                self._files, root = fs.FileSystem.from_uri(place)
            self._root = PurePosixPath(root)

    @staticmethod
    def _refuse_password(place: str) -> None:
        if re.match(r"[^/]+://[^/?]*@", place):
            raise ConfigurationError(
                "the URL has a user or a password, which other users of this machine can see: set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY instead"
            )

    @contextmanager
    def errors(self, path: str = "") -> Iterator[None]:
        """Translate errors: a path that cannot be used is a wrong setting, all else an outage."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError) as error:
            raise ConfigurationError(f"{self._named(path)}: {error.strerror or error}") from error
        except pa.ArrowInvalid as error:
            raise ConfigurationError(f"{self._named(path)} cannot be read: {_first_line(error)}") from error
        except OSError as error:
            if self._local and error.errno is None:  # Arrow's: the contents are damaged
                raise ConfigurationError(f"{self._named(path)} cannot be read: {_first_line(error)}") from error
            raise OutageError(f"{self._named(path)}: {error.strerror or _first_line(error)}") from error

    def _named(self, path: str) -> str:
        return f"{self.place.partition('?')[0].rstrip('/')}/{path}" if path else self.place

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other exports of this machine out of a local folder, which is created. Raises BusyError."""
        if not self._local:
            yield
            return
        with self.errors():
            Path(self._root).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._root / ".tickpipe.lock", timeout=0):
                yield
        except Timeout:
            raise BusyError(f"another command of tickpipe writes to {self.place}: wait until it has ended") from None

    def paths(self) -> list[str]:
        """The paths of all files, without hidden ones. If this is one file: only an empty path."""
        with self.errors():
            info = self._files.get_file_info(str(self._root))
            if info.type == fs.FileType.NotFound:
                raise FileNotFoundError(2, "no such file or folder")
            if info.type == fs.FileType.File:
                return [""]
            found = self._files.get_file_info(fs.FileSelector(str(self._root), recursive=True))
            paths = [PurePosixPath(each.path) for each in found if each.type == fs.FileType.File]
        relative = [path.relative_to(self._root) for path in paths]
        return sorted(str(path) for path in relative if not any(part[0] in "._" for part in path.parts))

    def exists(self, path: str) -> bool:
        """Whether there is a file of this name."""
        with self.errors(path):
            return bool(self._files.get_file_info(self.full(path)).type == fs.FileType.File)

    def full(self, path: str) -> str:
        """The whole path in the file system; the name of the file if this is one file."""
        return str(self._root / path) if path else str(self._root)

    def open(self, path: str) -> Any:
        """The file, to be read at any position."""
        return self._files.open_input_file(self.full(path))

    def stream(self, path: str) -> Any:
        """The file, decompressed by its suffix, to be read once."""
        return self._files.open_input_stream(self.full(path), compression="detect")

    @contextmanager
    def replacement(self, path: str) -> Iterator[Path]:
        """A local path for the new contents of a file. At the end of the context the file gets them, at once.

        A hidden file of an interrupted run is overwritten. Without a new file at the local path nothing changes.
        """
        with self.errors(path):
            if self._local:
                target = Path(self.full(path))
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = target.with_name(f".{target.name}.part")
                aside.unlink(missing_ok=True)
                try:
                    yield aside
                    if aside.exists():
                        _rename(aside, target)
                finally:
                    aside.unlink(missing_ok=True)
                return
            with tempfile.TemporaryDirectory() as folder:
                aside = Path(folder) / PurePosixPath(path).name
                yield aside
                if aside.exists():
                    self._upload(aside, path)

    def _upload(self, source: Path, path: str) -> None:
        """Upload under a hidden name first: an upload that is cut off may leave a part."""
        target = PurePosixPath(self.full(path))
        aside = str(target.with_name(f".{target.name}.part"))
        with source.open("rb") as file, self._files.open_output_stream(aside) as upload:
            shutil.copyfileobj(file, upload, CHUNK)
        size = self._files.get_file_info(aside).size
        if size != source.stat().st_size:
            raise OutageError(f"{self._named(path)}: {size} of {source.stat().st_size} bytes arrived: run it again")
        self._files.move(aside, str(target))


def _rename(aside: Path, target: Path) -> None:
    """Replace the target, and wait until the disk has both the contents and the name."""
    _sync(aside)
    aside.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
