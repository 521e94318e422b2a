"""Where the `tickpipe` command, and `python -m tickpipe`, begin."""

import os
import sys

if (
    __name__ == "__main__"
    and not sys.flags.safe_path
    and __file__ != f"{sys.path[0]}{os.sep}tickpipe{os.sep}__main__.py"
):
    del sys.path[0]  # `python -m` searches the working folder first: a redis.py or a common.py there is not ours

import common.interrupt  # noqa: F401  first: what follows takes half a second
from tickpipe.cli.app import main

if __name__ == "__main__":
    main()
