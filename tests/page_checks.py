"""What the page's tests ask of a page in Chromium: that everybody can use it, and that nothing comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")
NO_FAULTS: dict[str, list[str]] = {"contrast": [], "targets": [], "names": [], "overflow": []}


def faults(page: Page) -> dict[str, list[str]]:
    """What WCAG 2.2 finds at fault with what is shown now, by kind, and what is wider than the screen."""
    return page.evaluate(_CHECKS)


@contextmanager
def open_page(browser: Browser, url: str, *, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """A page in a fresh context, checked at its end: no request elsewhere, no error, nothing that the policy stopped.

    Args:
        browser: of `open_browser`.
        url: of a server's page.
        expected: words of console errors that belong to the test, such as those of a refused request.
        options: of a browser's context.
    """
    complaints: list[str] = []
    origin = "/".join(url.split("/")[:3])
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(180_000)  # a busy machine is slow, not wrong
    page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if _is_foreign(request.url, origin) else None)
    try:
        page.goto(url)
        yield page
        page.evaluate("0")  # what was on its way has come
        assert [text for text in complaints if not any(word in text for word in expected)] == []
    finally:
        context.close()


def _is_foreign(url: str, origin: str) -> bool:
    return not url.startswith((f"{origin}/", f"blob:{origin}/", "data:"))
