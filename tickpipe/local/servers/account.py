"""The system account that the servers run as."""

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

if sys.platform != "win32":
    import pwd

from tickpipe.local.servers.children import ending_with_parent
from tickpipe.local.servers.stopping import POLL, _raise_if_set

#: Of the servers' environment nothing comes from ours: it may hold secrets, and PG… variables would change settings.
SERVER_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class _Account:
    """Whom the servers run as: `nobody` when we are root, as PostgreSQL refuses root; else ourselves (both None)."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def choose(cls) -> _Account:
        if sys.platform == "win32":
            raise ConfigurationError("the embedded servers need Linux or macOS: set REDIS_URL and DATABASE_URL instead")
        if os.geteuid() != 0:
            return cls()
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise ConfigurationError("PostgreSQL refuses root and there is no user `nobody`: run as a user") from None
        return cls(nobody.pw_uid, nobody.pw_gid)

    @property
    def process_options(self) -> dict[str, Any]:
        """For subprocess. A session of its own keeps the terminal's Ctrl-C, which is meant for us, from the child."""
        account: dict[str, Any] = {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": []}
        return {"cwd": "/", "env": SERVER_ENVIRONMENT, "start_new_session": True, **account}

    def run(self, *command: str | Path, text: str = "", stop: threading.Event | None = None) -> tuple[int, str]:
        """Run a short command, `text` on its stdin: its exit status and all its output.

        If `stop` is set the command and its children are killed. Raises StartStoppedError.
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
                    _raise_if_set(stop)
                    with suppress(subprocess.TimeoutExpired):
                        output, _ = process.communicate(text_left, timeout=POLL)
                        return process.returncode, output.decode(errors="replace")
                    text_left = b""  # `communicate` has taken it
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise

    def can(self, *command: str | Path) -> bool:
        try:
            return self.run(*command)[0] == 0
        except OSError:  # not even executable for this account
            return False

    def own_folder(self, folder: Path) -> None:
        """Make `folder` a private one (0700), or find it so; refuse one that somebody else has made."""
        if self.uid is not None and not self.can("test", "-x", folder.parent):
            way_out = "use --data-dir /var/lib/tickpipe"
            raise ConfigurationError(f"the servers run as `nobody`, who cannot reach {folder.parent}: {way_out}")
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        ours = os.geteuid()
        owner = ours if self.uid is None else self.uid
        refused = ConfigurationError(f"{folder} is not a folder of user id {owner}: use another place, or remove it")
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise refused from None
            raise
        try:  # by the descriptor: `nobody` could put a link in the folder's place after a look at its name
            if os.fstat(opened).st_uid not in (owner, ours):
                raise refused
            if self.uid is not None and self.gid is not None:
                os.fchown(opened, self.uid, self.gid)
            os.fchmod(opened, 0o700)
        finally:
            os.close(opened)
