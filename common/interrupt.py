"""Ends the process without a traceback if Ctrl-C comes during imports. Each `__main__` imports this module first.

Later, `common.cli.run` turns Ctrl-C into SystemExit, so that open files and connections are closed.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the parent process has chosen to ignore SIGINT
    signal.signal(signal.SIGINT, signal.SIG_DFL)
