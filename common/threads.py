"""Threads whose result or error another thread collects."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec

P = ParamSpec("P")


def spare_the_collector() -> None:
    """Run Python's cycle collector less often. Prices are many small objects without cycles; it took 10 % of CPU."""
    gc.freeze()
    gc.set_threshold(10_000)  # 100,000 objects would be a pause of 0.1 s


def in_thread(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Future[None]:
    """Run `function` in a daemon thread. The Future ends with it, or with its exception."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            function(*args, **kwargs)
            future.set_result(None)
        except BaseException as error:  # noqa: BLE001  the Future raises it
            future.set_exception(error)

    threading.Thread(target=work, name=getattr(function, "__qualname__", None), daemon=True).start()
    return future
