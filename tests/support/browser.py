"""The Chromium or Chrome of this machine, without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
PROGRAM_OF_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
#: Root has no sandbox. The other options disable all external requests.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_program() -> str | None:
    """The path of the browser, or None."""
    return next(filter(None, map(shutil.which, [*PROGRAMS, PROGRAM_OF_MACOS])), None)


@contextmanager
def launched(program: str) -> Iterator[Browser]:
    """A running browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()
