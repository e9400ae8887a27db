"""The page and API keys, in real Chromium: it asks for one where the server wants it, and does not ask on without."""

from __future__ import annotations

import pytest
from browser import DESKTOP
from page_checks import open_page
from serving import ServerProcess
from using_page import SIZES, ask, wait_done

REFUSAL = {"status": 401, "content_type": "application/json", "body": '{"error": {"message": "no key"}}'}


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server"), fake_seconds=0.2) as server:
        server.wait_ready(240)
        yield server


@SIZES
def test_a_server_that_needs_a_key_says_so(browser, server, size):
    asked = []
    with open_page(browser, f"{server.address}/docs", expected=("401",), viewport=size) as page:
        page.route("**/v1/**", lambda route: (asked.append(1), route.fulfill(**REFUSAL)))
        page.goto(server.address)
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_function("() => document.getElementById('server-words').textContent === 'Needs a key'")
        page.evaluate("document.getElementById('key-open').hidden = false")
        for name in (".server", "#key-open", ".bar nav"):
            assert page.locator(name).bounding_box()["height"] <= 42  # one line
        before = len(asked)
        page.wait_for_timeout(4000)
        assert len(asked) == before
        page.unroute("**/v1/**")
        page.click("#key-open")
        page.fill("#key", "vm_good")
        page.keyboard.press("Enter")
        page.wait_for_selector("#server[data-state=ready]")


def test_a_key_that_is_no_longer_good_is_asked_for_once(browser, server):
    asked = []
    with open_page(browser, server.address, expected=("401", "Failed to load"), viewport=DESKTOP) as page:
        page.route("**/v1/videos/*/events*", lambda route: route.abort())
        page.route("**/v1/videos/video_*", lambda route: (asked.append(1), route.fulfill(**REFUSAL)))
        ask(page, steps=50)
        page.wait_for_selector("#key-dialog[open]")
        before = len(asked)
        page.wait_for_timeout(4500)
        assert len(asked) == before
        page.unroute("**/v1/videos/video_*")
        page.unroute("**/v1/videos/*/events*")
        page.fill("#key", "vm_good")
        page.keyboard.press("Enter")
        wait_done(page)
