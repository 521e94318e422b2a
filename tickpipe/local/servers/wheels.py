"""Server programs from installed wheels."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import threading
from pathlib import Path

from common.errors import ConfigurationError
from tickpipe.local.servers.stopping import raise_if_set


def package_folder(package: str) -> Path:
    """The folder of an installed package. Does not import it, since that is slow and has side effects.

    Raises ConfigurationError.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"{package} is not installed: pip install 'tickpipe[local]'. If there is no wheel for this platform, set "
            "REDIS_URL and DATABASE_URL instead"
        )
    return Path(spec.submodule_search_locations[0])


def copy_readable(wheel: Path, copy: Path, stop: threading.Event | None) -> None:
    """Copy a package's folder and its shared libraries into the folder `copy`, readable by all users.

    Raises StartStoppedError if `stop` is set before the end.
    """

    def copy_file(source: str, target: str) -> None:
        raise_if_set(stop)
        shutil.copy2(source, target)

    building = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}")
    try:
        for source in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            if source.exists():
                ignored = shutil.ignore_patterns("include", "__pycache__")
                shutil.copytree(source, building / source.name, symlinks=True, ignore=ignored, copy_function=copy_file)
        for path in (building, *building.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
        building.rename(copy)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
