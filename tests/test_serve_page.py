"""The page in real Chromium over a real server: upload, progress, playback, variation, cancel, delete, errors."""

from __future__ import annotations

import io
import json

import pytest
from browser import DESKTOP, PHONE
from page_checks import NO_FAULTS, faults, open_page
from PIL import Image
from serving import PICTURE, ServerProcess, submit, wait_for
from using_page import PROMPT, SIZES, ask, fill_form, wait_done, wait_other

# Every text that the progress shows from now on, in order.
WATCH = """() => {
  const words = document.getElementById("veil-words");
  window.seen = [];
  new MutationObserver(() => {
    if (seen.at(-1) !== words.textContent) seen.push(words.textContent);
  }).observe(words, { childList: true, characterData: true, subtree: true });
}"""


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server"), renderer="model", workers=1) as server:
        server.wait_ready(240)
        yield server


@SIZES
def test_a_video_from_the_picture_to_its_deletion(browser, server, size):
    with open_page(browser, server.address, viewport=size) as page:
        page.evaluate(WATCH)
        ask(page, steps=40)  # long enough to be seen on a machine that does other things, too
        wait_done(page)
        steps = [int(text.split()[1]) for text in page.evaluate("seen") if text.startswith("Step")]
        assert len(steps) >= 3 and steps == sorted(steps) and max(steps) <= 40
        first = page.evaluate("location.hash")
        assert page.evaluate("document.getElementById('player').videoWidth") == 256  # 32 pixels, each eight times
        assert page.evaluate("document.getElementById('reference').naturalWidth") == 32
        for link, mark in (("#download", b"ftyp"), ("#download-record", b'"seed"')):
            with page.expect_download() as download:
                page.click(link)
            assert mark in download.value.path().read_bytes()

        seed = page.inner_text(".facts dd >> nth=0")
        page.click("#vary")
        wait_other(page, first)
        wait_done(page)
        assert page.inner_text(".facts dd >> nth=0") != seed
        assert page.locator(".card").count() >= 2

        page.click("#delete")
        page.click("#confirm button[value=keep]")
        assert page.is_visible("#player")
        gone = page.evaluate("location.hash.slice(1)")
        page.click("#delete")
        page.click("#confirm button[value=delete]")
        page.wait_for_function("gone => !document.querySelector(`[data-id=${gone}]`)", arg=gone)
        with server.client() as client:
            assert client.get(f"/v1/videos/{gone}").status_code == 404


@SIZES
def test_cancel_stops_what_is_made(browser, server, size):
    with open_page(browser, server.address, viewport=size) as page:
        ask(page, steps=100)
        page.wait_for_function("() => /^Step [2-9]/.test(document.getElementById('veil-words').textContent)")
        page.click("#cancel")
        page.wait_for_function("() => document.getElementById('veil-words').textContent === 'Cancelled'")
        id = page.evaluate("location.hash.slice(1)")
    with server.client() as client:
        video = client.get(f"/v1/videos/{id}").json()
    assert video["error"]["code"] == "cancelled" and video["step"] < 100


@SIZES
def test_what_cannot_be_made_is_said_in_words(browser, server, size, tmp_path):
    no_picture = tmp_path / "holiday.png"
    no_picture.write_bytes(b"not a picture at all")
    with open_page(browser, server.address, expected=("400 (Bad Request)",), viewport=size) as page:
        page.wait_for_selector("#server[data-state=ready]")
        page.click("#make")
        assert "Add a picture" in page.inner_text("#error")
        page.set_input_files("#picture", no_picture)
        page.fill("#prompt", PROMPT)
        page.click("#make")
        page.wait_for_function("() => document.getElementById('error').textContent.includes('picture')")
        page.set_input_files("#picture", PICTURE)
        page.click("summary")
        page.fill("#size", "33x32")
        page.click("#make")
        page.wait_for_function("() => document.getElementById('error').textContent.includes('multiples of')")
        assert page.get_attribute("#size", "aria-invalid") == "true"
        assert page.evaluate("document.activeElement.id") == "size"


@SIZES
@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (80, 80)])
def test_the_whole_picture_is_seen_before_a_box_is_drawn(browser, server, tmp_path, size, shape):
    Image.new("RGB", shape, "red").save(tmp_path / "p.png")
    with open_page(browser, server.address, viewport=size) as page:
        page.set_input_files("#picture", tmp_path / "p.png")
        page.wait_for_selector("#preview:visible")
        inner, outer = page.locator("#preview").bounding_box(), page.locator("#drop-label").bounding_box()
    for start, length in (("x", "width"), ("y", "height")):
        assert outer[start] <= inner[start]
        assert inner[start] + inner[length] <= outer[start] + outer[length] + 1


def test_a_box_around_the_subject_is_drawn_and_used(browser, server, tmp_path):
    picture = Image.new("RGB", (200, 100), "black")
    picture.paste("red", (40, 20, 80, 80))
    picture.save(tmp_path / "p.png")
    with open_page(browser, server.address, viewport=PHONE) as page:
        page.wait_for_selector("#server[data-state=ready]")
        assert not page.is_visible("#highlight-how")
        page.set_input_files("#picture", tmp_path / "p.png")
        page.select_option("#highlight-how", "box")
        page.fill("#prompt", PROMPT)
        page.click("#make")
        assert "Draw a box" in page.inner_text("#error")
        page.locator("#drop").scroll_into_view_if_needed()
        frame = page.locator("#preview").bounding_box()
        scale, top = frame["width"] / 200, frame["y"] + frame["height"] / 2 - frame["width"] / 4
        page.mouse.move(frame["x"] + 80 * scale, top + 80 * scale)  # from any corner
        page.mouse.down()
        page.mouse.move(frame["x"] + 40 * scale, top + 20 * scale, steps=3)
        page.mouse.up()
        assert page.input_value("#box") == "40,20,80,80"
        drawn = page.locator("#box-rect").bounding_box()
        assert abs(drawn["x"] - frame["x"] - 40 * scale) < 2 and abs(drawn["width"] - 40 * scale) < 2
        assert faults(page) == NO_FAULTS
        before = page.evaluate("location.hash")
        page.click("#make")
        wait_other(page, before)
        id = page.evaluate("location.hash.slice(1)")
    with server.client() as client:
        video = wait_for(client, id, 120)
        used = Image.open(io.BytesIO(client.get(video["links"]["reference"]).content)).convert("RGB")
    colours = {colour for _, colour in used.getcolors(4096)}
    assert (0, 0, 0) not in colours and (255, 255, 255) in colours


def test_keys_alone_make_a_video(browser, server):
    with open_page(browser, server.address, viewport=DESKTOP) as page:
        page.wait_for_selector("#server[data-state=ready]")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.set_input_files("#picture", PICTURE)
        page.focus("#prompt")
        page.keyboard.type(PROMPT)
        before = page.evaluate("location.hash")
        page.keyboard.press("Control+Enter")
        wait_other(page, before)
        page.wait_for_function("() => document.getElementById('live').textContent !== ''")
        wait_done(page)
        assert page.inner_text("#live") == "The video is ready"


def answer(status, message, param=None):
    """A handler of a page's requests: those that change something are refused so, all others go to the server."""
    body = json.dumps({"error": {"message": message, "param": param}})

    def handle(route):
        if route.request.method == "GET":
            route.continue_()
        else:
            route.fulfill(status=status, content_type="application/json", body=body)

    return handle


def made(server, prompt=PROMPT, **fields):
    with server.client() as client:
        video = submit(client, prompt, num_inference_steps="2", **fields).json()
        return wait_for(client, video["id"], 120)


def focused(page):
    return page.evaluate("document.activeElement.id")


def is_seen(page, selector):
    box = page.locator(selector).bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"], (selector, box)


@SIZES
@pytest.mark.parametrize("button", ["vary", "delete"])
def test_a_refusal_is_said_beside_the_button(browser, server, size, button):
    made(server)
    with open_page(browser, server.address, expected=("429",), viewport=size) as page:
        page.wait_for_selector("#player:visible")
        page.route("**/v1/videos**", answer(429, "the queue is full"))
        page.click(f"#{button}")
        if button == "delete":
            page.click("#confirm button[value=delete]")
        page.wait_for_selector("#refusal:visible")
        assert page.inner_text("#refusal") == "The queue is full."
        assert not page.is_visible("#error")
        is_seen(page, "#refusal")
        assert focused(page) == button
        assert faults(page) == NO_FAULTS


@SIZES
def test_a_long_refusal_leaves_the_button_in_view(browser, server, size):
    with open_page(browser, server.address, expected=("400 (Bad Request)",), viewport=size) as page:
        page.wait_for_selector("#server[data-state=ready]")
        page.route("**/v1/videos**", answer(400, "there is a reason " * 30))
        fill_form(page)
        page.click("#make")
        page.wait_for_selector("#error:visible")
        is_seen(page, "#error")
        is_seen(page, "#make")


@SIZES
def test_a_long_prompt_leaves_the_buttons_in_reach(browser, server, size):
    made(server, "a creature that goes on and on " * 120, negative_prompt="a blur, noise, text, " * 100)
    with open_page(browser, server.address, viewport=size) as page:
        page.wait_for_selector("#player:visible")
        for text, lines in (("work-title", 6), ("avoided", 4)):
            page.wait_for_selector(f"#{text}-more:visible")
            line = page.evaluate(f"parseFloat(getComputedStyle(document.getElementById('{text}')).lineHeight)")
            clamped = page.locator(f"#{text}").bounding_box()["height"]
            assert clamped <= lines * line + 1
            assert faults(page) == NO_FAULTS
            page.click(f"#{text}-more")
            assert page.get_attribute(f"#{text}-more", "aria-expanded") == "true"
            assert page.locator(f"#{text}").bounding_box()["height"] > 3 * clamped
            page.click(f"#{text}-more")
            assert page.locator(f"#{text}").bounding_box()["height"] == clamped
            is_seen(page, f"#{text}-more")
    made(server)
    with open_page(browser, server.address, viewport=size) as page:
        page.wait_for_selector("#player:visible")
        assert not page.is_visible("#work-title-more")


def test_keys_keep_their_place(browser, server):
    with open_page(browser, server.address, viewport=DESKTOP) as page:
        page.wait_for_selector("#server[data-state=ready]")
        fill_form(page)
        page.fill("#num_inference_steps", "100")
        before = page.evaluate("location.hash")
        page.focus("#make")
        page.keyboard.press("Enter")
        wait_other(page, before)
        assert focused(page) == "make"
        page.focus("#cancel")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('veil-words').textContent === 'Cancelled'")
        page.wait_for_timeout(100)  # a browser takes the focus from what is hidden when it draws
        assert focused(page) == "work-title"
    for _ in range(13):
        with server.client() as client:
            submit(client, num_inference_steps="1")
    with open_page(browser, server.address, viewport=DESKTOP) as page:
        page.wait_for_selector("#older:visible")
        page.focus("#older")
        while page.get_attribute("#older", "aria-disabled") == "false":
            cards = page.inner_html("#cards")
            page.keyboard.press("Enter")
            page.wait_for_function("cards => document.getElementById('cards').innerHTML !== cards", arg=cards)
        page.wait_for_timeout(100)
        assert focused(page) == "older"


def test_a_number_that_cannot_be_read_is_not_dropped(browser, server):
    with open_page(browser, server.address, viewport=PHONE) as page:
        page.wait_for_selector("#server[data-state=ready]")
        fill_form(page)
        page.focus("#num_inference_steps")
        page.keyboard.type("1-2")
        page.click("#make")
        assert page.inner_text("#error").startswith("Steps:")
        assert focused(page) == "num_inference_steps"
        is_seen(page, "#error")


def test_what_is_no_longer_watched_goes_on(browser, server):
    with open_page(browser, server.address, viewport=DESKTOP) as page:
        ask(page, steps=50)
        card = f"[data-id={page.evaluate('location.hash.slice(1)')}]"
        ask(page, steps=1)
        assert page.get_attribute(card, "data-status") != "completed"
        page.wait_for_selector(f"{card}[data-status=completed]", timeout=25_000)


@SIZES
def test_an_earlier_picture_keeps_its_size(browser, server, size):
    made(server)
    with open_page(browser, server.address, viewport=size) as page:
        page.wait_for_selector("#player:visible")
        for field, change in (("size", "64x64"), ("fit", "crop")):
            page.click("#edit")
            (page.fill if field == "size" else page.select_option)(f"#{field}", change)
            page.click("#make")
            assert "choose the picture again" in page.inner_text("#error")
            assert focused(page) == field
            is_seen(page, "#error")
        page.set_input_files("#picture", PICTURE)
        before = page.evaluate("location.hash")
        page.click("#make")
        wait_other(page, before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@SIZES
def test_seen_heard_and_touched_by_everybody(browser, server, size, scheme):
    with server.client() as client:
        done = submit(client, PROMPT, num_inference_steps="2").json()["id"]
        wait_for(client, done, 120)
    options = {"viewport": size, "color_scheme": scheme, "reduced_motion": "reduce"}
    with open_page(browser, server.address, **options) as page:
        page.wait_for_selector("#player:visible")
        page.click("summary")
        assert faults(page) == NO_FAULTS
        assert page.evaluate("document.getElementById('player').paused")  # nothing moves unasked
        assert page.evaluate("document.getAnimations().length") == 0
        page.click("#make")  # an error, in its colour
        assert faults(page) == NO_FAULTS
        page.click("#delete")
        assert faults(page) == NO_FAULTS


def test_the_interface_is_described_without_a_network(browser, server):
    with open_page(browser, f"{server.address}/docs", viewport=DESKTOP) as page:
        page.wait_for_selector(".opblock")
        assert page.locator(".opblock").count() >= 10
        page.click(".opblock-post >> nth=0")
        page.wait_for_selector(".opblock-body:has-text('input_reference')")
