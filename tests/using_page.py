"""What a user does on the page in Chromium: fills the form in, sends it, waits for the video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from browser import DESKTOP, PHONE
from serving import PICTURE

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROMPT = "a big creature hopping to the left over a green meadow"
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


def fill_form(page: Page, prompt: str = PROMPT) -> None:
    """A picture and a prompt; the settings are open."""
    page.set_input_files("#picture", PICTURE)
    page.fill("#prompt", prompt)
    if not page.is_visible("#num_inference_steps"):
        page.click("summary")


def ask(page: Page, *, steps: int, prompt: str = PROMPT) -> None:
    """Fills the form in, sends it, and waits until the page shows the new video and no earlier one."""
    page.wait_for_selector("#server[data-state=ready]")
    before = page.evaluate("location.hash")
    fill_form(page, prompt)
    page.fill("#num_inference_steps", str(steps))
    page.click("#make")
    wait_other(page, before)


def wait_other(page: Page, before: str) -> None:
    page.wait_for_function("before => location.hash !== before", arg=before)


def wait_done(page: Page) -> None:
    page.wait_for_selector("#player:visible")
    page.wait_for_function("() => document.getElementById('player').currentTime > 0")
