"""Imported before all else, by each `__main__`: Ctrl-C while Python still imports ends the process without a traceback.

`common.cli.run` then makes an exception of it: from there on things are open that must be closed.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us has it ignored, and means it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
