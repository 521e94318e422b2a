"""Runs a command line: `.env`, exit statuses, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer

from common import libpq, output, settings
from common.docstrings import restore_help
from common.dotenv_file import load_dotenv_file
from common.errors import TickpipeError
from common.settings import Secret
from common.terminal import echo


def run(app: typer.Typer, name: str) -> NoReturn:
    """Read `.env` in the working folder, then run the command. Variables that are set already win.

    Exit status: 0 for success, 1 after a failure worth a retry, 2 for wrong usage or configuration, 130 after Ctrl-C.
    An error is one line on stderr, without a traceback.
    """
    try:
        output.prepare()
        load_dotenv_file(Path(".env"))
        restore_help(app)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see common/interrupt.py
            # Exit instead of KeyboardInterrupt, which Typer does not always catch.
            signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        app(prog_name=name)
    except TickpipeError as error:
        echo(*f"{name}: {error}".split("\n"), err=True)
        sys.exit(error.exit_status)
    except SystemExit as ended:
        # Typer's message does not have the invalid value. The pydantic error behind it has.
        refused: Any = ended.__context__
        if errors := getattr(getattr(refused, "__cause__", None), "errors", None):
            echo(f"{name}: {errors()[0]['input']!r} was given for {refused.param.get_error_hint()}", err=True)
        raise
    sys.exit(0)


def environment() -> Mapping[str, str]:
    """The process's environment."""
    return os.environ


def database_url() -> Secret:
    """DATABASE_URL. For an embedded PostgreSQL libpq's variables are removed from the environment of this process."""
    url = settings.database_url(os.environ)
    if libpq.is_embedded(url):
        remove_libpq_variables()
    return url


def database_urls() -> list[Secret]:
    """The URLs in DATABASE_URLS, or else DATABASE_URL alone."""
    return settings.read_database_urls(os.environ) or [database_url()]


def remove_libpq_variables() -> None:
    """Remove libpq's variables from the environment of this process. Call it before threads start."""
    libpq.remove_variables(os.environ)
