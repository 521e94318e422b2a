"""Where the `producer` command, and `python -m producer`, begin."""

import common.interrupt  # noqa: F401  first: what follows takes half a second
from producer.cli import main

if __name__ == "__main__":
    main()
