"""Draw docs/demo.svg, the live view of `make demo` after some minutes.

`make picture` runs this script. It runs `tickpipe up` in a pseudo-terminal, on data in a temporary folder.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import sys
import tempfile
import termios
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.svg")
#: Minutes before the picture is taken, so that the candle lines have some minutes to show.
MINUTES = 16.0
COLUMNS, LINES = 110, 24

#: Replaces rich's template, which loads fonts from the web, by one with the monospaced fonts of the system.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: 20.27px; white-space: pre; }}  /* 12.2 px per character, rich's layout */
.{unique_id}-title {{ font-family: ui-sans-serif, "DejaVu Sans", Arial, sans-serif; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""


def run_demo(folder: Path, minutes: float) -> str:
    """Run `tickpipe up` on data in `folder`, press Ctrl-C after `minutes`, and return its terminal output."""
    variables = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "LC_ALL"}}
    variables |= {"TERM": "xterm-256color", "TICKPIPE_DATA_DIR": str(folder)}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)  # without a .env
        program = Path(sys.executable).with_name("tickpipe")
        os.execve(program, ["tickpipe", "up"], variables)  # noqa: S606
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    output, stop_at = bytearray(), time.monotonic() + 60 * minutes
    while True:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # the program has ended
                break
        if time.monotonic() > stop_at:
            os.kill(pid, signal.SIGINT)  # Ctrl-C, once
            stop_at = float("inf")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = output.decode()
    print(text[text.rindex("received") :].strip())  # noqa: T201
    if status != 0:
        sys.exit(f"tickpipe up ended with status {status}")
    return text


def last_screen(output: str) -> str:
    """The last live view before Ctrl-C. Each refresh erases the previous one, line by line."""
    frames = re.split(r"(?:\x1b\[1A|\x1b\[2K|\r(?!\n))+", output.partition("stopping:")[0])
    return next(frame for frame in reversed(frames) if frame.strip()).rstrip().replace("\r\n", "\n")


def to_svg(screen: str) -> str:
    """The screen as SVG."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, highlight=False)
    console.print(Text.from_ansi(screen))
    return console.export_svg(title="make demo", code_format=SVG, unique_id="demo")


def main() -> None:
    """Run the demo and write the picture. The first argument overrides the minutes."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    print(f"running the demo for {minutes:g} minutes …")  # noqa: T201
    folder = Path(tempfile.mkdtemp(prefix="tickpipe-", dir="/tmp"))  # a short path, for the sockets
    try:
        folder.chmod(0o755)  # as root the servers run as `nobody`, which needs access
        output = run_demo(folder, minutes)
    finally:
        shutil.rmtree(folder)
    PICTURE.write_text(to_svg(last_screen(output)), encoding="utf-8")
    print(f"wrote {PICTURE}")  # noqa: T201


if __name__ == "__main__":
    main()
