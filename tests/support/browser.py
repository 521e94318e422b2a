"""A real browser without a window: the Chromium or Chrome of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
PROGRAM_OF_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
#: As root there is no sandbox; the rest keeps the browser from talking to anybody but us.
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
    """The browser's path, where there is one."""
    return next(filter(None, map(shutil.which, [*PROGRAMS, PROGRAM_OF_MACOS])), None)


@contextmanager
def launched(program: str) -> Iterator[Browser]:
    """The browser, running."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()
