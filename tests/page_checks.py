"""What the page's tests ask of a page in Chromium: contrast, overflow, requests elsewhere, complaints of the browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# WCAG 2.2, success criterion 1.4.3: 4.5, or 3 for text of 24 px (bold: 18.66 px) and more. Colours are painted on a
# canvas, which knows every notation. Text over pictures (the veil, badges) has no one colour behind it and is left out.
_LOW_CONTRAST = """() => {
  const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, under) => top.slice(0, 3).map((value, i) => value * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = ([r, g, b]) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [1, 1, 1, 1]);
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    const text = words || (element.matches("input, textarea") && (element.value || element.placeholder));
    if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (element.closest(".screen, .thumb, .unseen, .skip, :disabled, dialog:not([open])")) continue;
    const style = getComputedStyle(element, words || element.value ? null : "::placeholder");
    const back = behind(element), front = over(rgba(style.color), back);
    const [dark, bright] = [light(front), light(back)].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) bad.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return bad;
}"""

# Targets of a finger or a pointer, WCAG 2.2, 2.5.8: 24 by 24 px. What is hidden for eyes alone is clicked by its label.
_SMALL_TARGETS = """() => [...document.querySelectorAll("a, button, input, select, summary, textarea")]
  .filter((element) => element.checkVisibility() && !element.matches(".unseen, .skip"))
  .filter((element) => { const box = element.getBoundingClientRect(); return box.width < 24 || box.height < 24; })
  .map((element) => element.outerHTML.slice(0, 80))"""

_NAMELESS = """() => [...document.querySelectorAll("a, button, input, select, textarea, [role=progressbar], video")]
  .filter((element) => element.checkVisibility())
  .filter((element) => !(element.ariaLabel || element.textContent.trim() || element.labels?.length || element.title))
  .map((element) => element.outerHTML.slice(0, 80))"""


def faults(page: Page) -> dict[str, list[str]]:
    """What a person with weak eyes, a finger, a screen reader or a small screen would trip over; empty lists: nothing."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return {
        "contrast": page.evaluate(_LOW_CONTRAST),
        "targets": page.evaluate(_SMALL_TARGETS),
        "names": page.evaluate(_NAMELESS),
        "overflow": [f"{wide} px"] if wide > 0 else [],
    }


NO_FAULTS: dict[str, list[str]] = {"contrast": [], "targets": [], "names": [], "overflow": []}


@contextmanager
def open_page(browser: Browser, address: str, *, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """The page in a fresh context, checked at its end: no request elsewhere, no error, nothing that the policy stopped.

    Args:
        browser: of `open_browser`.
        address: of the server.
        expected: words of console errors that belong to the test, such as those of a refused request.
        options: of a browser's context.
    """
    complaints: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if _is_foreign(request.url, address) else None)
    try:
        page.goto(address)
        yield page
        page.evaluate("0")  # what was on its way has come
        assert [text for text in complaints if not any(word in text for word in expected)] == []
    finally:
        context.close()


def _is_foreign(url: str, address: str) -> bool:
    return not url.startswith((address, f"blob:{address}", "data:"))
