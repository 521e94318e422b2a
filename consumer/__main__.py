"""Where the `consumer` command, and `python -m consumer`, begin."""

import common.interrupt  # noqa: F401  first: what follows takes half a second
from consumer.cli import main

if __name__ == "__main__":
    main()
