"""What the command lines share: `.env`, exit statuses, signals."""

from __future__ import annotations

import _thread
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

from common import output
from common.dotenv_file import load_dotenv_file
from common.errors import TickpipeError

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
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_status)
    except SystemExit as ended:
        # Typer has told what is wrong in a frame, without the value: pydantic's error, which made Typer's, knows it.
        refused: Any = ended.__context__
        if errors := getattr(getattr(refused, "__cause__", None), "errors", None):
            print(f"{name}: {errors()[0]['input']!r} was given for {refused.param.get_error_hint()}", file=sys.stderr)  # noqa: T201
        raise
    sys.exit(0)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM, Ctrl-C or a closed terminal sets; a second signal stops the process at once."""
    stop = threading.Event()
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored, and means it
        signals.append(signal.SIGHUP)

    def handle(_number: int, _frame: object) -> None:
        for each in signals:
            signal.signal(each, lambda number, _: os._exit(128 + number))
        # Not here: the thread that this interrupts may be in stop.wait(), with the lock that set() takes.
        _thread.start_new_thread(stop.set, ())

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


def microseconds() -> int:
    """The time now, microseconds since 1970."""
    return time.time_ns() // 1000
