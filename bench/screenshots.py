"""Screenshots of the server's page by a real server with the embedded model: what `docs/images` holds.

python bench/screenshots.py                    docs/images/page-*.png
python bench/screenshots.py /tmp/x --all       every state, both widths, light and dark: to look at
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from browser import DESKTOP, PHONE, open_browser
from PIL import Image
from server_process import ServerProcess, submit, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "videomaker" / "assets"
WIDTHS = {"desktop": DESKTOP, "phone": PHONE}
KEPT = {"empty-desktop-light", "progress-desktop-dark", "done-desktop-light", "history-phone-dark", "error-phone-light"}
LONG = 200  # steps of the video that is seen in the making: four looks long


def main() -> int:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs" / "images")
    parser.add_argument("--all", action="store_true", help="every state, not only what the manual shows")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = {"renderer": "model", "workers": 1, "log_level": "error", "max_steps": LONG}
    with (
        tempfile.TemporaryDirectory(prefix="videomaker-") as data,
        ServerProcess(Path(data), **settings) as server,
        open_browser() as browser,
    ):
        server.wait_ready(600)
        for state, show in _states(server):
            for width, viewport in WIDTHS.items():
                for scheme in ("light", "dark"):
                    name = f"{state}-{width}-{scheme}"
                    if options.all or name in KEPT:
                        look = {"viewport": viewport, "color_scheme": scheme, "reduced_motion": "reduce"}
                        _shoot(browser, server.address, show, options.folder / f"page-{name}.png", look)
    return 0


def _states(server: ServerProcess) -> Iterator[tuple[str, Any]]:
    """Name, and what to do with a page until it shows it, in the order in which a server comes to them."""
    yield "empty", lambda page: page.wait_for_selector("#empty:visible")
    with server.client() as client:
        first = _ask(client, 0, steps="20")
        wait_for(client, first, 600)
        yield "done", _show_player
        running = _ask(client, 1, steps=str(LONG))
        yield "progress", _show_progress
        client.post(f"/v1/videos/{running}/cancel")
        for seed in range(2, 14):
            wait_for(client, _ask(client, seed, steps="10"), 600)
        yield "history", _show_player
        yield "subject", _show_subject
        yield "error", _show_error


def _ask(client: Any, seed: int, steps: str) -> str:
    creatures = sorted(ASSETS.glob("*.png"))
    lines = (ASSETS / "prompts.txt").read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    which = seed % len(creatures)
    picture = creatures[which].read_bytes()
    return submit(client, prompts[which], picture=picture, seed=str(seed), num_inference_steps=steps).json()["id"]


def _show_player(page: Page) -> None:
    page.wait_for_selector("#player:visible")
    page.wait_for_function("() => document.getElementById('player').readyState >= 2")
    page.evaluate("document.getElementById('player').currentTime = 0.4")
    page.wait_for_function("() => (p => !p.seeking && p.readyState >= 2)(document.getElementById('player'))")
    page.wait_for_timeout(500)  # the browser's own sign of loading fades


def _show_progress(page: Page) -> None:
    page.wait_for_function("() => /^Step ([3-9]|[1-9][0-9])/.test(document.getElementById('veil-words').textContent)")


def _show_subject(page: Page) -> None:
    """A picture is chosen, and its subject to be cut out."""
    page.set_input_files("#picture", ASSETS / "moss.png")
    page.select_option("#highlight-how", "box")
    page.fill("#box", "6, 6, 26, 28")
    page.click("summary:has-text('Settings')")


def _show_error(page: Page) -> None:
    page.set_input_files("#picture", ASSETS / "prompts.txt")
    page.fill("#prompt", "a creature over a meadow")
    page.click("#make")
    page.wait_for_selector("#error:visible")


def _shoot(browser: Browser, address: str, show: Any, path: Path, look: dict[str, Any]) -> None:
    context = browser.new_context(**look, device_scale_factor=1)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("#server[data-state=ready]")
    show(page)
    page.wait_for_load_state("networkidle" if "progress" not in path.name else "load")
    page.screenshot(path=path, full_page=True)
    context.close()
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    raise SystemExit(main())
