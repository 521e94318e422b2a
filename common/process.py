"""Signals that end the process."""

from __future__ import annotations

import os
import signal
import threading


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM, Ctrl-C or a closed terminal sets; a second signal stops the process at once.

    A thread does both: Python runs handlers in the main thread alone, and only after a call into a C library returns.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it on purpose
        signals.append(signal.SIGHUP)

    def handle(_number: int, _frame: object) -> None:
        """Python has written the number into the pipe."""

    def watch() -> None:
        first = True
        while True:
            number = os.read(reader, 1)[0]
            if signal.getsignal(number) is not handle:  # other code has replaced the handler
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
