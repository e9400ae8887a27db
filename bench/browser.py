"""Chromium by playwright: for the page's tests and its screenshots. No browser is downloaded here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


class NoBrowser(Exception):
    """Why there is none: a package or a program that is missing."""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The system's Chromium, or the one of `playwright install chromium`.

    Raises:
        NoBrowser: playwright or Chromium is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise NoBrowser("playwright is not installed: pip install playwright") from error
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(found).is_file():
            raise NoBrowser("Chromium is not installed: apt install chromium, or playwright install chromium")
        # Containers have no sandbox of Chromium's own, and little shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
