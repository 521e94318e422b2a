"""Imported before all else, by each `__main__`: Ctrl-C while Python still imports ends the process without a traceback.

`common.cli.run` gives Ctrl-C back to Python: from then on there are things to undo.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us has it ignored, and means it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
