"""What the command lines share: `.env`, exit statuses, signals."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer

from common import libpq, output, settings
from common.dotenv_file import load_dotenv_file
from common.errors import TickpipeError
from common.settings import Secret
from common.terminal import echo

P = ParamSpec("P")


def run(app: typer.Typer, name: str) -> NoReturn:
    """Run a command line: a `.env` in the working folder first (the real environment wins), then the command.

    Exits 0 when done, 1 after a failure worth a retry, 2 for wrong usage or configuration, each with one line on
    stderr and no traceback; 130, and nothing said, after Ctrl-C.
    """
    try:
        output.prepare()
        load_dotenv_file(Path(".env"))
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see common/interrupt.py
            signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # KeyboardInterrupt: Typer lets some of them through
        app(prog_name=name)
    except TickpipeError as error:
        echo(*f"{name}: {error}".split("\n"), err=True)
        sys.exit(error.exit_status)
    except SystemExit as ended:
        # Typer has told what is wrong in a frame, without the value: pydantic's error, which made Typer's, knows it.
        refused: Any = ended.__context__
        if errors := getattr(getattr(refused, "__cause__", None), "errors", None):
            echo(f"{name}: {errors()[0]['input']!r} was given for {refused.param.get_error_hint()}", err=True)
        raise
    sys.exit(0)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM, Ctrl-C or a closed terminal sets; a second signal stops the process at once.

    A thread does both: Python runs handlers in the main thread alone, and only after a call into a C library returns.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored, and means it
        signals.append(signal.SIGHUP)

    def handle(_number: int, _frame: object) -> None:
        """Python has written the number into the pipe."""

    def watch() -> None:
        first = True
        while True:
            number = os.read(reader, 1)[0]
            if signal.getsignal(number) is not handle:  # another part of the program has taken this signal over
                continue
            if not first:
                os._exit(128 + number)
            first = False
            stop.set()

    threading.Thread(target=watch, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for each in signals:
        signal.signal(each, handle)
    return stop


def spare_the_collector() -> None:
    """Let Python's cycle collector look more rarely: prices are many small objects and no cycle; it took a tenth."""
    gc.freeze()
    gc.set_threshold(10_000)  # 100,000 objects would be a pause of 0.1 s


def in_thread(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Future[None]:
    """Run `function` in a thread that does not keep the process alive; the Future tells its end, or its error."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            function(*args, **kwargs)
            future.set_result(None)
        except BaseException as error:  # noqa: BLE001  handed to whoever asks the Future
            future.set_exception(error)

    threading.Thread(target=work, name=getattr(function, "__qualname__", None), daemon=True).start()
    return future


def environment() -> Mapping[str, str]:
    """The environment, for the command lines to hand on."""
    return os.environ


def database_url() -> Secret:
    """DATABASE_URL. For an embedded PostgreSQL libpq's variables are removed from the environment of this process."""
    url = settings.database_url(os.environ)
    if libpq.is_embedded(url):
        remove_libpq_variables()
    return url


def remove_libpq_variables() -> None:
    """Remove libpq's variables from the environment of this process. Call it before threads start."""
    libpq.remove_variables(os.environ)


def microseconds() -> int:
    """The time now, microseconds since 1970."""
    return time.time_ns() // 1000
