"""The user account of the embedded servers."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError
from tickpipe.local.servers.children import ending_with_parent
from tickpipe.local.servers.stopping import POLL, raise_if_set

if sys.platform != "win32":
    import pwd

#: The servers inherit nothing from our environment: it may hold secrets, and PG… variables would change settings.
SERVER_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """Our own account (both None). As root, which PostgreSQL refuses, the account `nobody`."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def choose(cls) -> Account:
        """The account for this user. Raises ConfigurationError."""
        if sys.platform == "win32":
            raise ConfigurationError("the embedded servers need Linux or macOS. Set REDIS_URL and DATABASE_URL instead")
        if os.geteuid() != 0:
            return cls()
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise ConfigurationError(
                "PostgreSQL refuses to run as root, and the user `nobody` is missing. Run as a regular user"
            ) from None
        return cls(nobody.pw_uid, nobody.pw_gid)

    @property
    def process_options(self) -> dict[str, Any]:
        """Arguments for subprocess. A new session keeps the terminal's Ctrl-C from the child."""
        account: dict[str, Any] = {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": []}
        return {"cwd": "/", "env": SERVER_ENVIRONMENT, "start_new_session": True, **account}

    def run(self, *command: str | Path, text: str = "", stop: threading.Event | None = None) -> tuple[int, str]:
        """Run a short command with `text` as its stdin. Returns its exit status and its output.

        If `stop` is set, the command and its children are killed. Raises StartStoppedError.
        """
        pipe, text_left = subprocess.PIPE, text.encode()
        with subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            preexec_fn=ending_with_parent(signal.SIGKILL),  # noqa: PLW1509  two system calls, no lock taken
            **self.process_options,
        ) as process:
            try:
                while True:
                    raise_if_set(stop)
                    with suppress(subprocess.TimeoutExpired):
                        output, _ = process.communicate(text_left, timeout=POLL)
                        return process.returncode, output.decode(errors="replace")
                    text_left = b""  # `communicate` has buffered it
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise

    def can(self, *command: str | Path) -> bool:
        """Whether this account can run a command with exit status 0."""
        try:
            return self.run(*command)[0] == 0
        except OSError:  # not executable for this account
            return False

    def own_folder(self, folder: Path) -> None:
        """Make a private folder (mode 0700). Raises ConfigurationError if it belongs to another user."""
        if self.uid is not None and not self.can("test", "-x", folder.parent):
            raise ConfigurationError(
                f"the servers run as `nobody`, which cannot reach {folder.parent}: use --data-dir /var/lib/tickpipe"
            )
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        ours = os.geteuid()
        owner = ours if self.uid is None else self.uid
        refused = ConfigurationError(f"{folder} is not a folder of user id {owner}. Remove it, or use another folder")
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise refused from None
            raise
        try:  # by descriptor: the account could replace the folder by a link after a check by name
            if os.fstat(opened).st_uid not in (owner, ours):
                raise refused
            if self.uid is not None and self.gid is not None:
                os.fchown(opened, self.uid, self.gid)
            os.fchmod(opened, 0o700)
        finally:
            os.close(opened)
