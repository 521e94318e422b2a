"""Entry point of the `producer` command and of `python -m producer`."""

import os
import sys

if (
    __name__ == "__main__"
    and not sys.flags.safe_path
    and __file__ != f"{sys.path[0]}{os.sep}producer{os.sep}__main__.py"
):
    del sys.path[0]  # `python -m` searches the working folder first, which may hold another redis.py or common.py

import common.interrupt  # noqa: F401  first, because the imports below take half a second
from producer.cli import main

if __name__ == "__main__":
    main()
