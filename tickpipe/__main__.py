"""Where the `tickpipe` command, and `python -m tickpipe`, begin."""

import common.interrupt  # noqa: F401  first: what follows takes half a second
from tickpipe.cli import main

if __name__ == "__main__":
    main()
